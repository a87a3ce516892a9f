"""The fixtures of the end-to-end tests."""

from command_line import headstart, headstart_json, photos

__all__ = ["headstart", "headstart_json", "photos"]
