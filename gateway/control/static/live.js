// What others do, seen without loading the page anew. Asks every few seconds, and not while nobody looks.

const EVERY_MS = 4000;
const SLOWER_MS = 30_000; // while the gateway does not answer

function every(look) {
  let wait = EVERY_MS;
  let timer;
  const next = async () => {
    clearTimeout(timer);
    if (document.hidden) return;
    try {
      await look();
      wait = EVERY_MS;
    } catch {
      wait = Math.min(wait * 2, SLOWER_MS);
    }
    clearTimeout(timer);
    timer = setTimeout(next, wait);
  };
  timer = setTimeout(next, wait);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) next(); });
}

async function get(path) {
  const response = await fetch(path, { headers: { accept: "application/json, text/html" } });
  if (response.redirected) window.location.reload(); // to the login page: the session has ended
  if (!response.ok) throw new Error(`${response.status}`);
  return response;
}

// The list: the new one takes the place of the old one, with what is open and where the focus is.
const list = document.querySelector("[data-live]");
if (list) {
  const news = document.getElementById("news");
  let shown = null;
  every(async () => {
    const text = await (await get(list.dataset.live)).text();
    if (text === shown) return;
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const before = list.querySelectorAll(".rows a").length;
    const open = [...list.querySelectorAll("details[open]")].map((one) => one.id);
    const focused = list.contains(document.activeElement) ? document.activeElement.id : "";
    for (const one of fresh.querySelectorAll("[autofocus]")) one.removeAttribute("autofocus");
    list.replaceChildren(...fresh.body.childNodes);
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    if (focused) document.getElementById(focused)?.focus();
    const added = list.querySelectorAll(".rows a").length - before;
    if (shown !== null && added > 0) news.textContent = `${added} more item${added === 1 ? "" : "s"} in the inbox`;
    shown = text;
  });
}

// An item: whoever looks at it sees who takes it; whoever holds it hears when they no longer do.
const item = document.querySelector("[data-live-item]");
if (item) {
  const isMine = "mine" in item.dataset;
  const fence = document.querySelector("#decide [name=fence]")?.value;
  every(async () => {
    const now = await (await get(item.dataset.liveItem)).json();
    if (!isMine) {
      if (now.state !== item.dataset.state || (now.reviewer ?? "") !== item.dataset.reviewer) window.location.reload();
      return;
    }
    const held = now.state === "claimed" && now.reviewer === item.dataset.reviewer && String(now.fence) === fence;
    const words = now.state === "decided" ? `${now.reviewer} decided it.`
      : now.state === "claimed" ? `${now.reviewer} has it now.` : "Your claim has run out.";
    const detail = { isMine: held, lease_s: now.lease_s, isRecalled: now.recalled, words };
    document.dispatchEvent(new CustomEvent("inbox:claim", { detail }));
  });
}
