"use strict";

// Names of files and classes come from outside: they are put into the page as text, never as markup.

const SHOWN = 5; // classes of a picture
const AT_ONCE = 4; // requests; the server puts together what waits
const TRIES = 8; // of a request that finds the server busy
const byId = (id) => document.getElementById(id);

let about = { classes: [], unlike: 0, coverage: null, limits: { max_bytes: Infinity } };
let waiting = [];
let running = 0;
let done = 0;
let failed = 0;
let total = 0;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function percent(value) {
  return `${(100 * value).toFixed(1)} %`;
}

function count(number, one, several) {
  return `${number} ${number === 1 ? one : several}`;
}

function tell() {
  byId("bar").hidden = total === 0;
  const problems = failed ? `, ${failed} could not be read` : "";
  byId("status").textContent =
    done < total ? `${done} of ${count(total, "picture", "pictures")} done` : `${count(total, "picture", "pictures")} done${problems}`;
}

function card(file) {
  const item = element("li", "picture");
  const thumb = element("div", "thumb");
  const said = element("div", "said");
  const image = element("img");
  const url = URL.createObjectURL(file);
  image.alt = "";
  image.decoding = "async";
  image.onload = () => URL.revokeObjectURL(url);
  image.onerror = () => {
    URL.revokeObjectURL(url);
    thumb.replaceChildren("no preview");
  };
  image.src = url;
  thumb.append(image);
  said.append(element("h2", "", "…"), element("p", "name", file.name));
  item.append(thumb, said);
  byId("results").append(item);
  return { item, said, file };
}

function chance(name, value) {
  const row = element("li", "chance");
  const track = element("div", "track");
  const fill = element("div", "fill");
  track.setAttribute("aria-hidden", "true");
  fill.style.width = `${100 * value}%`;
  track.append(fill);
  row.append(element("span", "", name), element("span", "number", percent(value)), track);
  return row;
}

function headline(found) {
  if (!about.multi_label) return found.label;
  return found.labels.length ? found.labels.join(", ") : "none of the labels";
}

function show(place, found) {
  const ranked = Object.entries(found.probabilities).sort((a, b) => b[1] - a[1]);
  const chances = element("ul", "chances");
  chances.setAttribute("aria-label", "Probabilities");
  chances.append(...ranked.slice(0, SHOWN).map(([name, value]) => chance(name, value)));
  place.said.querySelector("h2").textContent = headline(found);
  place.said.append(chances);
  if (ranked.length > SHOWN) place.said.append(element("p", "more", `and ${ranked.length - SHOWN} less likely`));
  if (found.set) {
    const sure = about.coverage === null ? "" : ` (right ${Number((100 * about.coverage).toFixed(1))} % of the time)`;
    place.said.append(element("p", "note", `One of: ${found.set.join(", ")}${sure}`));
  }
  if (found.novelty !== null && found.novelty <= about.unlike) {
    place.said.append(element("p", "note unlike", "Unlike any training picture: what is said of it means little."));
  }
}

function complain(place, reason) {
  if (place.item.isConnected) failed += 1;
  place.said.querySelector("h2").textContent = "Not read";
  place.said.append(element("p", "note problem", reason));
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

async function ask(file) {
  await introduced; // a picture may be dropped before the server has said what it takes
  if (file.size > about.limits.max_bytes) return { error: `larger than the limit of ${about.limits.max_bytes} bytes` };
  for (let attempt = 1; ; attempt += 1) {
    const form = new FormData();
    form.append("picture", file);
    const answer = await fetch("predict", { method: "POST", body: form });
    const said = await answer.json();
    if (answer.status !== 503 || attempt === TRIES) return answer.ok ? said.predictions[0] : said;
    await pause(Number(answer.headers.get("Retry-After") || 1));
  }
}

async function work(place) {
  try {
    const found = await ask(place.file);
    if (found.error) complain(place, found.error);
    else show(place, found);
  } catch {
    complain(place, "The server did not answer.");
  }
}

async function next() {
  if (running >= AT_ONCE || !waiting.length) return;
  running += 1;
  const place = waiting.shift();
  await work(place);
  running -= 1;
  if (place.item.isConnected) {
    done += 1;
    tell();
  }
  next();
}

function take(files) {
  const chosen = [...files];
  total += chosen.length;
  waiting.push(...chosen.map(card));
  tell();
  for (let started = 0; started < AT_ONCE; started += 1) next();
}

function clear() {
  waiting = [];
  total = done = failed = 0;
  byId("results").replaceChildren();
  tell();
  byId("files").focus();
}

function introduce() {
  document.title = `${about.model} – headstart`;
  byId("model").textContent = about.model;
  const names = about.classes.slice(0, 12).join(", ") + (about.classes.length > 12 ? ", …" : "");
  byId("classes").textContent = `${count(about.classes.length, "class", "classes")}: ${names}`;
}

async function start() {
  try {
    about = await (await fetch("healthz")).json();
    introduce();
  } catch {
    byId("classes").textContent = "The server does not answer.";
  }
}

byId("files").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
byId("clear").addEventListener("click", clear);
document.addEventListener("paste", (event) => take(event.clipboardData.files));
// Anywhere on the page: a picture that is dropped beside the zone must not replace the page.
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("zone").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("zone").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("zone").classList.remove("over");
  take(event.dataTransfer.files);
});
const introduced = start();
