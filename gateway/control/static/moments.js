// Moments in the reader's own zone and language, and how long undoing is still offered.

const words = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

function localise(within) {
  for (const time of within.querySelectorAll("time[datetime]")) time.textContent = words.format(new Date(time.dateTime));
}

localise(document);

const undo = document.querySelector("form.undo");
if (undo) {
  const until = Date.now() + Number(undo.dataset.leftS) * 1000;
  const left = undo.querySelector(".left");
  const tick = () => {
    const seconds = Math.ceil((until - Date.now()) / 1000);
    if (seconds > 0) {
      left.textContent = `(${seconds} s)`;
      return;
    }
    if (undo.contains(document.activeElement)) document.getElementById("main").focus();
    undo.remove();
    clearInterval(timer);
  };
  const timer = setInterval(tick, 250);
}
