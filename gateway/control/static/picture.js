// A picture on its stage: zoomed, turned by quarters, moved. By buttons and keys, wheel, drag, and two fingers.
//
// A point of the picture, from its middle and in its own pixels, is shown at `at + scale * turned(point)`, from the
// stage's middle and in CSS pixels.

const STEP = 1.25;
const MOST = 32;
const MOVE_PX = 60;
const SMALL_PX = 336; // what smaller pictures are enlarged to
const LEAST_PX = 160; // a stage is no lower, whatever is on it
const NARROW = "(max-width: 54rem)"; // as in inbox.css: there the decision lies over the lower half

function show(figure) {
  const stage = figure.querySelector(".stage");
  const image = stage.querySelector("img");
  const tools = figure.querySelector(".tools");
  const told = figure.querySelector(".zoom");
  const size = { width: Number(image.dataset.width), height: Number(image.dataset.height) };
  const view = { scale: 1, turns: 0, x: 0, y: 0, isFitted: true };
  const fingers = new Map();

  const turned = () => (view.turns % 2 ? { width: size.height, height: size.width } : size);
  const enlarged = Math.max(1, Math.floor(SMALL_PX / Math.max(size.width, size.height)));

  // The scale at which all of it is seen; a small one is enlarged by a whole factor, so that its pixels stay alike.
  const fitting = () => {
    const { width, height } = turned();
    const share = window.matchMedia(NARROW).matches ? 0.42 : 0.7;
    const scale = Math.min(stage.clientWidth / width, (window.innerHeight * share) / height, enlarged);
    return scale > 2 ? Math.floor(scale) : scale;
  };

  const clamp = (value, most) => Math.max(-most, Math.min(most, value));

  const render = () => {
    const { width, height } = turned();
    if (view.isFitted) {
      Object.assign(view, { scale: fitting(), x: 0, y: 0 });
      stage.style.height = `${Math.max(LEAST_PX, Math.ceil(height * view.scale))}px`;
    }
    view.x = clamp(view.x, Math.max(0, (width * view.scale - stage.clientWidth) / 2));
    view.y = clamp(view.y, Math.max(0, (height * view.scale - stage.clientHeight) / 2));
    image.style.transform =
      `translate(-50%, -50%) translate(${view.x}px, ${view.y}px) rotate(${view.turns * 90}deg) scale(${view.scale})`;
    stage.classList.toggle("movable", width * view.scale > stage.clientWidth || height * view.scale > stage.clientHeight);
    figure.classList.toggle("tiny", view.scale >= 2);
    const turn = ((view.turns % 4) + 4) % 4;
    told.textContent = `, shown at ${Math.round(view.scale * 100)} %${turn ? `, turned by ${turn * 90}°` : ""}`;
    if (tools) tools.querySelector("[data-do=fit] .label").textContent = view.isFitted ? "Actual size" : "Fit";
  };

  // Keeps the point under (x, y), from the stage's middle, where it is.
  const zoom = (factor, x = 0, y = 0) => {
    const scale = Math.max(Math.min(fitting(), 1) / 2, Math.min(MOST, view.scale * factor));
    view.x = x + (view.x - x) * (scale / view.scale);
    view.y = y + (view.y - y) * (scale / view.scale);
    Object.assign(view, { scale, isFitted: false });
    render();
  };

  const move = (x, y) => {
    view.x += x;
    view.y += y;
    render();
  };

  const turn = (by) => {
    view.turns += by;
    Object.assign(view, by > 0 ? { x: -view.y, y: view.x } : { x: view.y, y: -view.x });
    render();
  };

  const fit = () => {
    Object.assign(view, view.isFitted ? { scale: 1, isFitted: false, x: 0, y: 0 } : { isFitted: true });
    render();
  };

  const actions = {
    zoom_in: () => zoom(STEP), zoom_out: () => zoom(1 / STEP), fit, turn_left: () => turn(-1), turn_right: () => turn(1),
  };

  const fromMiddle = (event) => {
    const box = stage.getBoundingClientRect();
    return { x: event.clientX - box.left - box.width / 2, y: event.clientY - box.top - box.height / 2 };
  };

  const onMove = (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = fromMiddle(event);
    const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const apart = (one) => Math.hypot(one.x - other.x, one.y - other.y) || 1;
      zoom(apart(now) / apart(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
      move((now.x - before.x) / 2, (now.y - before.y) / 2);
    } else {
      move(now.x - before.x, now.y - before.y);
    }
    fingers.set(event.pointerId, now);
  };

  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    fingers.set(event.pointerId, fromMiddle(event));
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", onMove);
  for (const kind of ["pointerup", "pointercancel"]) {
    stage.addEventListener(kind, (event) => fingers.delete(event.pointerId));
  }
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const { x, y } = fromMiddle(event);
    zoom(Math.exp(-Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 100) / 400), x, y);
  }, { passive: false });
  document.addEventListener("keydown", (event) => {
    if (!event.shiftKey || event.target instanceof HTMLTextAreaElement || event.target instanceof HTMLInputElement) return;
    const way = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!way) return;
    event.preventDefault();
    move(way[0] * MOVE_PX, way[1] * MOVE_PX);
  });
  for (const button of tools?.querySelectorAll("[data-do]") ?? []) {
    button.addEventListener("click", actions[button.dataset.do]);
  }
  if (tools) tools.hidden = false;
  stage.classList.add("ready");
  image.width = size.width;
  image.height = size.height;
  new ResizeObserver(render).observe(stage);
  render();
}

for (const figure of document.querySelectorAll(".picture")) show(figure);
