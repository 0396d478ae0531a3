// What of a page hinders a reader who sees badly, or uses no pointer: one line a fault. Contrast as WCAG 2.2 has it.
() => {
  const faults = [];
  const shown = (element) => {
    const box = element.getBoundingClientRect();
    return box.width > 1 && box.height > 1 && element.checkVisibility({ checkVisibilityCSS: true, checkOpacity: true });
  };
  const named = (element) => {
    const by = element.getAttribute("aria-labelledby");
    const labels = element.labels ? [...element.labels].map((label) => label.textContent) : [];
    const told = [element.getAttribute("aria-label"), by && document.getElementById(by)?.textContent, ...labels,
      element.textContent, element.getAttribute("alt"), element.querySelector("img")?.alt];
    return told.some((name) => name?.trim());
  };
  const where = (element) => element.outerHTML.slice(0, 100);

  if (!document.documentElement.lang) faults.push("the page has no language");
  if (!document.title.trim()) faults.push("the page has no title");
  if (document.querySelectorAll("main").length !== 1) faults.push("there is not one main part");
  for (const element of document.querySelectorAll("a[href], button, summary, dialog, fieldset, section")) {
    if (!named(element)) faults.push(`no name: ${where(element)}`);
  }
  for (const element of document.querySelectorAll("input:not([type=hidden]), textarea, select")) {
    if (![...element.labels].some((label) => label.textContent.trim())) faults.push(`no label: ${where(element)}`);
  }
  for (const image of document.images) if (!image.hasAttribute("alt")) faults.push(`no alt: ${where(image)}`);
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  for (const id of new Set(ids.filter((id, at) => ids.indexOf(id) !== at))) faults.push(`two elements have the id ${id}`);
  let level = 0;
  for (const heading of document.querySelectorAll("main h1, main h2, main h3")) {
    const found = Number(heading.tagName[1]);
    if (found > level + 1 && level > 0) faults.push(`a level of headings is left out: ${where(heading)}`);
    level = found;
  }
  for (const element of document.querySelectorAll("a[href].button, button, input:not([type=hidden]), summary")) {
    const { width, height } = element.getBoundingClientRect();
    if (shown(element) && Math.min(width, height) < 24 && element.type !== "radio") {
      faults.push(`${Math.round(width)} by ${Math.round(height)} pixels is too small to hit: ${where(element)}`);
    }
  }

  const colour = (text) => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = canvas.getImageData(0, 0, 1, 1).data;
    return { red, green, blue, alpha: alpha / 255 };
  };
  const over = (above, below) => {
    const mix = (a, b) => a * above.alpha + b * (1 - above.alpha);
    return { red: mix(above.red, below.red), green: mix(above.green, below.green), blue: mix(above.blue, below.blue), alpha: 1 };
  };
  const ground = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.push(colour(getComputedStyle(one).backgroundColor));
    return layers.reduceRight((below, layer) => over(layer, below), { red: 255, green: 255, blue: 255, alpha: 1 });
  };
  const luminance = ({ red, green, blue }) => {
    const linear = [red, green, blue].map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let checked = 0;
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || !shown(element) || element.closest(":disabled, .skips, .visually-hidden")) continue;
    const style = getComputedStyle(element);
    const below = ground(element);
    const [light, dark] = [luminance(over(colour(style.color), below)), luminance(below)].sort((a, b) => b - a);
    const contrast = (light + 0.05) / (dark + 0.05);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    checked += 1;
    if (contrast < (isLarge ? 3 : 4.5)) faults.push(`contrast ${contrast.toFixed(2)}: ${texts.currentNode.textContent.trim().slice(0, 40)}`);
  }
  if (!checked) faults.push("no text was found to check");
  if (document.documentElement.scrollWidth > window.innerWidth) {
    faults.push(`the page is ${document.documentElement.scrollWidth} pixels wide, the window ${window.innerWidth}`);
  }
  return faults;
}
