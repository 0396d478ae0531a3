// Keys. `data-label-key` stands on a label's button, `data-keys` on everything else that has keys of its own.

// A key or a click meant for the last item must not decide this one: they count once it has been on screen for a moment.
const SEEN_AFTER_MS = 250;

const decide = document.getElementById("decide");
const help = document.getElementById("help");
const pictures = [...document.querySelectorAll(".picture img")];
let seen = false;
let sent = false;

setTimeout(async () => {
  seen = true;
  await Promise.allSettled(pictures.map((picture) => picture.decode()));
  document.documentElement.dataset.ready = ""; // tells whoever works the page by a program that keys and clicks count
}, SEEN_AFTER_MS);

function isShown() {
  return seen && pictures.every((picture) => picture.complete && picture.naturalWidth > 0);
}

// A command is found by the very key, a label by either case of it.
function targetOf(key) {
  const commands = [...document.querySelectorAll("[data-keys]")];
  const has = (wanted) => (element) => element.dataset.keys.split(" ").includes(wanted);
  const lower = key.length === 1 ? key.toLowerCase() : key;
  return document.querySelector(`[data-label-key="${CSS.escape(lower)}"]`)
    ?? commands.find(has(key)) ?? commands.find(has(lower));
}

// Along the labels, by arrows: from none to the first, or the last.
function step(by) {
  const labels = [...document.querySelectorAll(".choices button")];
  const at = labels.indexOf(document.activeElement);
  const next = at < 0 ? (by > 0 ? 0 : labels.length - 1) : (at + by + labels.length) % labels.length;
  labels[next]?.focus();
}

// Whether an arrow, pressed at *target*, is meant to move the page: there is more of the input than is seen.
function scrolls(target) {
  const { top, bottom } = document.getElementById("input").getBoundingClientRect();
  return !target.closest(".decide") && (top < 0 || bottom > window.innerHeight);
}

function onKey(event) {
  const writing = event.target instanceof HTMLTextAreaElement;
  if (writing && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    event.target.form.requestSubmit();
    return;
  }
  if (help?.open || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (writing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.target instanceof HTMLInputElement) return;
  if (event.key.startsWith("Arrow")) {
    if (event.shiftKey || event.target.closest(".scroll")) return;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      if (decide && !scrolls(event.target)) {
        event.preventDefault();
        step(event.key === "ArrowDown" ? 1 : -1);
      }
      return;
    }
  }
  const target = targetOf(event.key);
  if (!target || target.disabled || !isShown()) return;
  event.preventDefault();
  if (target.dataset.labelKey !== undefined) target.classList.add("pressed");
  target.click();
}

document.addEventListener("keydown", onKey);

// One decision a page: the second click of a double click goes nowhere, be it on this page or on the one that follows.
document.addEventListener("submit", (event) => {
  if (event.target.method === "dialog") return;
  if (sent || (!seen && "afterALook" in event.target.dataset)) event.preventDefault();
  else sent = true;
});

// Coming back by the browser's history shows the page as it was left.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) window.location.reload();
});

const shows = document.getElementById("show-help");
if (shows && help) {
  shows.hidden = false;
  shows.addEventListener("click", () => help.showModal());
}
