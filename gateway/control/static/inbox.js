// Keys for the decision page; without this file its buttons still work.
"use strict";

// A key meant for the last item must not decide this one: keys count once it has been on screen for a moment.
const SEEN_AFTER_MS = 250;

const form = document.getElementById("decide");
const pictures = [...document.querySelectorAll(".picture img")];
let seen = false;
let sent = false;

setTimeout(() => { seen = true; }, SEEN_AFTER_MS);

function isShown() {
  return seen && pictures.every((picture) => picture.complete && picture.naturalWidth > 0);
}

function press(button) {
  button.classList.add("pressed");
  button.form.requestSubmit(button);
}

document.addEventListener("keydown", (event) => {
  const writing = event.target instanceof HTMLTextAreaElement;
  if (writing && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    form.requestSubmit();
    return;
  }
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || (writing && event.key !== "Escape")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const button = [...document.querySelectorAll("[data-key]")].find((candidate) => candidate.dataset.key === key);
  if (!button || !isShown()) return;
  event.preventDefault();
  press(button);
});

// One decision a page: the second click of a double click goes nowhere.
document.addEventListener("submit", (event) => {
  if (sent) event.preventDefault();
  sent = true;
});

// Coming back by the browser's history shows the page as it was left.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) window.location.reload();
});

setTimeout(() => { document.getElementById("expired").hidden = false; }, Number(form.dataset.leaseS) * 1000);
