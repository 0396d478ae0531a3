// A claim: renewed while its holder works at the page, and a warning before it ends.

const RENEW_AFTER_MS = 60_000;
const WARN_MS = 60_000;
const WORK = ["keydown", "pointerdown", "pointermove", "wheel", "scroll", "touchstart"];

const form = document.getElementById("decide");

if (form) {
  const ending = document.getElementById("ending");
  const left = document.getElementById("lease-left");
  const expired = document.getElementById("expired");
  const recalled = document.getElementById("recalled");
  const keep = document.getElementById("keep");
  const lease_ms = Number(form.dataset.leaseS) * 1000;
  let endsAt = Date.now() + lease_ms;
  let renewedAt = Date.now();
  let workedAt = 0;
  let isRenewing = false;
  let isOver = false;

  for (const kind of WORK) {
    document.addEventListener(kind, () => { workedAt = Date.now(); }, { passive: true, capture: true });
  }

  const holdFor = (seconds, isRecalled) => {
    endsAt = Date.now() + seconds * 1000;
    if (!isRecalled) return;
    recalled.hidden = false;
    keep.hidden = true;
  };

  const renew = async () => {
    if (isRenewing || isOver) return;
    isRenewing = true;
    const fields = new FormData(form);
    const body = new URLSearchParams({ token: fields.get("token"), fence: fields.get("fence") });
    try {
      const response = await fetch(form.dataset.renew, { method: "POST", body, redirect: "error" });
      if (response.ok) {
        const held = await response.json();
        holdFor(held.lease_s, held.recalled);
        renewedAt = Date.now();
      } else if (response.status === 409) {
        end("Your claim has run out.");
      }
    } catch {
      // No connection now; the next try may have one.
    } finally {
      isRenewing = false;
      tick();
    }
  };

  const end = (words) => {
    isOver = true;
    expired.firstElementChild.textContent = words;
    expired.hidden = false;
    ending.hidden = true;
    recalled.hidden = true;
    for (const button of form.querySelectorAll("button")) button.disabled = true;
  };

  const tick = () => {
    if (isOver) return;
    const left_ms = endsAt - Date.now();
    if (left_ms <= 0) {
      end("Your claim has run out.");
      return;
    }
    ending.hidden = left_ms > WARN_MS;
    left.textContent = `${Math.ceil(left_ms / 1000)} s`;
    const due = Math.min(RENEW_AFTER_MS, lease_ms / 3);
    if (workedAt > renewedAt && Date.now() - renewedAt >= due) renew();
  };

  keep.addEventListener("click", renew);
  document.addEventListener("inbox:claim", ({ detail }) => {
    if (isOver || isRenewing) return;
    if (detail.isMine) holdFor(detail.lease_s, detail.isRecalled);
    else end(detail.words);
    tick();
  });
  setInterval(tick, 1000);
  tick();
}
