// What this browser remembers; nothing of it is sent anywhere by itself.
import { $ } from "./dom.js";
import { speak } from "./words.js";

const KEY = "mixtral_rag.settings";
let held = {};
try { held = JSON.parse(localStorage.getItem(KEY) ?? "{}"); } catch { /* damaged: begin anew */ }

export function setting(name, value) {
  if (value === undefined) return held[name];
  held[name] = value;
  localStorage.setItem(KEY, JSON.stringify(held));
  return value;
}

export function apply() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = setting("theme") || (dark ? "dark" : "light");
  speak(setting("language"));
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);

// Each field of the dialog, and how its value is read.
const FIELDS = {
  language: ["set-language", (node) => node.value],
  theme: ["set-theme", (node) => node.value],
  temperature: ["set-temperature", (node) => (node.value === "" ? null : Number(node.value))],
  maxTokens: ["set-max-tokens", (node) => (node.value === "" ? null : Number(node.value))],
  ocr: ["set-ocr", (node) => node.checked],
};

export function begin(onChange) {
  for (const [name, [id, read]] of Object.entries(FIELDS)) {
    const node = $(id);
    if (node.type === "checkbox") node.checked = setting(name) === true;
    else node.value = setting(name) ?? "";
    node.addEventListener("change", () => {
      if (!node.checkValidity()) return;
      setting(name, read(node));
      apply();
      onChange();
    });
  }
  $("open-settings").addEventListener("click", () => $("settings").showModal());
  $("settings").addEventListener("click", (event) => {
    if (event.target === $("settings")) $("settings").close();
  });
}
