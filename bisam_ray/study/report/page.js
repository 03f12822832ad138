// Draws the figures in the place of their still pictures, and lets the key switch arms off and point at them.
(() => {
  "use strict";
  const boxes = [...document.querySelectorAll("#key input")];
  const views = [];
  let figures = {};
  let off = [];

  const tell = (signal, value) => {
    for (const { view } of views) if (view.signal(signal) !== value) view.signal(signal, value).runAsync();
  };
  const shrink = async ({ place, rows, view, step }) => {
    place.hidden = rows.length > 0 && rows.every((row) => off.includes(row.arm) || off.includes(row.other));
    if (!step) return; // not a figure with a row per arm
    await view.runAsync();
    view.height(step * Math.max(1, view.scale("y").domain().length)).runAsync();
  };
  const light = (arm) => tell("lit", arm);
  const chosen = () => {
    off = boxes.filter((box) => !box.checked).map((box) => box.value);
    tell("off", off);
    views.forEach(shrink);
  };
  const all = (on) => () => {
    for (const box of boxes) box.checked = on;
    chosen();
  };

  const rowsOf = (part) => {
    if (!part || typeof part !== "object") return [];
    const own = (part.data?.values ?? []).filter((row) => row.arm !== undefined);
    return [...own, ...Object.entries(part).flatMap(([key, inner]) => (key === "data" ? [] : rowsOf(inner)))];
  };

  const options = {
    mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, hover: false,
    logLevel: 1, // errors: a figure whose arms are all switched off is no fault
    tooltip: { disableDefaultStyle: true },
  };
  const unpacked = (id) => {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };
  const load = async () => {
    const library = document.createElement("script");
    library.textContent = await unpacked("library");
    document.head.append(library);
    const specs = JSON.parse(await unpacked("specs"));
    options.config = specs.style;
    figures = specs.figures;
  };
  const draw = async (place) => {
    const still = place.firstElementChild;
    try {
      const spec = figures[place.dataset.figure][place.dataset.panel];
      const { view } = await vegaEmbed(place, spec, options);
      view.addEventListener("mouseover", (_, item) => light(item?.datum?.arm ?? null));
      view.addEventListener("mouseout", () => light(null));
      place.querySelector("svg").setAttribute("aria-hidden", "true"); // the place has a label that says it all
      const drawn = { place, rows: rowsOf(spec), view, step: spec.usermeta?.step };
      views.push(drawn);
      if (off.length) view.signal("off", off), shrink(drawn);
    } catch (error) {
      place.replaceChildren(still); // the picture says the same
      console.error(error);
    }
  };

  const start = async () => {
    await load();
    document.documentElement.classList.add("scripted");
    const key = document.getElementById("key");
    if (key && !matchMedia("(min-width: 70rem)").matches) key.open = false;
    for (const box of boxes) {
      box.checked = true; // what a browser remembers of an earlier visit is not what is drawn
      box.addEventListener("change", chosen);
      const label = box.closest("label");
      label.addEventListener("mouseenter", () => light(box.value));
      label.addEventListener("mouseleave", () => light(null));
      box.addEventListener("focus", () => box.matches(":focus-visible") && light(box.value));
      box.addEventListener("blur", () => light(null));
    }
    document.getElementById("all")?.addEventListener("click", all(true));
    document.getElementById("none")?.addEventListener("click", all(false));
    const places = [...document.querySelectorAll(".panel")];
    for (const place of places) await draw(place);
    let width = innerWidth;
    const fit = new ResizeObserver(() => {
      if (width === innerWidth) return; // the window's own event has told the figures
      width = innerWidth;
      dispatchEvent(new Event("resize"));
    });
    if (places.length) fit.observe(places[0]);
    document.documentElement.dataset.drawn = "yes";
  };
  start().catch((error) => console.error(error)); // in an old browser the pictures stay
})();
