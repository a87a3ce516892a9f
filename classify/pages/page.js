"use strict";
// Pictures of a page, the dialog behind a cell, and the map. Names are put into the page as text, never as markup.
(() => {
  const holder = document.getElementById("data");
  if (!holder) return;
  const data = JSON.parse(holder.textContent);
  const element = (tag, text, kind) => {
    const made = document.createElement(tag);
    if (text) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };

  const fill = (image, number) => {
    if (number in data.pictures) {
      image.src = "data:image/webp;base64," + data.pictures[number];
      image.removeAttribute("width");
      image.removeAttribute("height");
      return;
    }
    const told = element("span", data.missing[number] || "no picture here", "missing");
    told.setAttribute("role", "img");
    told.setAttribute("aria-label", `${image.alt}: ${told.textContent}`);
    image.replaceWith(told);
  };
  document.querySelectorAll("img[data-picture]").forEach((image) => fill(image, image.dataset.picture));

  const words = (row) => (row.answer === "" ? row.label : `${row.label}, taken for ${row.answer} at ${row.sure}`);
  const describe = (number) => {
    const [path, label, answer, sure, right] = data.rows[number];
    return { path, label, answer, sure, right };
  };
  const figure = (number) => {
    const row = describe(number);
    const made = element("figure");
    const image = element("img");
    image.alt = words(row);
    made.append(image);
    const caption = element("figcaption", "");
    caption.append(element("span", words(row), row.right ? "" : "bad"), element("span", row.path, "path"));
    made.append(caption);
    fill(image, number);
    return made;
  };

  const dialog = document.getElementById("cell");
  if (dialog) {
    const list = document.getElementById("cell-pictures");
    const open = (cell) => {
      const { title, count, rows } = data.cells[cell];
      document.getElementById("cell-heading").textContent = title;
      const fewer = rows.length < count ? `${rows.length} of ${count} pictures are in this file` : "";
      document.getElementById("cell-told").textContent = fewer;
      list.replaceChildren(
        ...rows.map((number) => {
          const item = element("li");
          item.append(figure(number));
          return item;
        }),
      );
      dialog.showModal();
      dialog.scrollTop = 0;
    };
    document.querySelectorAll("button[data-cell]").forEach((button) => {
      button.addEventListener("click", () => open(button.dataset.cell));
    });
    document.getElementById("cell-close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // beside it
    });
  }

  const map = document.getElementById("embedding-map");
  if (!map) return;
  const tip = document.getElementById("tip");
  const told = document.getElementById("map-told");
  const marks = [...map.querySelectorAll("use[data-picture]")];
  let at = null;
  const hide = () => {
    tip.hidden = true;
    if (at) at.classList.remove("at");
    at = null;
  };
  const show = (mark) => {
    if (at) at.classList.remove("at");
    at = mark;
    mark.classList.add("at");
    tip.replaceChildren(figure(mark.dataset.picture));
    tip.hidden = false;
    const place = mark.getBoundingClientRect();
    const box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(4, place.right + 8), document.documentElement.clientWidth - box.width - 4);
    const above = place.top - box.height - 8;
    tip.style.left = `${Math.max(4, left) + window.scrollX}px`;
    tip.style.top = `${(above > 4 ? above : place.bottom + 8) + window.scrollY}px`;
  };
  const middle = (mark) => {
    const box = mark.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  // The nearest mark in a direction: what lies aside counts double.
  const next = (direction) => {
    const [x, y] = middle(at);
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[direction];
    let best = null;
    let least = Infinity;
    for (const mark of marks) {
      const [u, v] = middle(mark);
      const along = (u - x) * dx + (v - y) * dy;
      const aside = Math.abs((u - x) * dy) + Math.abs((v - y) * dx);
      if (mark !== at && along > 0.5 && along + 2 * aside < least) [best, least] = [mark, along + 2 * aside];
    }
    return best;
  };
  map.addEventListener("pointerover", (event) => {
    const mark = event.target.closest("use[data-picture]");
    if (mark) show(mark);
  });
  map.addEventListener("pointerleave", hide);
  map.addEventListener("blur", hide);
  map.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    if (!event.key.startsWith("Arrow") || !marks.length) return;
    event.preventDefault();
    const mark = at ? next(event.key) : marks[0];
    if (!mark) return;
    show(mark);
    const row = describe(mark.dataset.picture);
    told.textContent = `${words(row)}, ${row.path}`;
  });
})();
