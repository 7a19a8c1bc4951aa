"use strict";
// What the whole page does: light and dark, the current section, and the number under the pointer. The map has its own file.
(() => {
  const root = document.documentElement;
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const announce = () => document.dispatchEvent(new Event("themechange"));

  try { const stored = localStorage.getItem("sureclr-theme"); if (stored) root.dataset.theme = stored; } catch { /* a file may have no storage */ }
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("sureclr-theme", root.dataset.theme); } catch { /* then it is not stored */ }
    announce();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", announce);

  // The section that is being read is the current one in the navigation.
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const parts = [...document.querySelectorAll("section.part")];
  const mark = () => {
    const read = parts.filter((p) => p.getBoundingClientRect().top < innerHeight / 3).pop() || parts[0];
    for (const [id, a] of links) { if (id === read.id) a.setAttribute("aria-current", "true"); else a.removeAttribute("aria-current"); }
  };
  addEventListener("scroll", () => requestAnimationFrame(mark), { passive: true });
  mark();

  // Charts: the mark nearest to the pointer shows its number. A drawing's <title> would be shown over it, and is its label already.
  for (const title of document.querySelectorAll("svg.chart > title")) title.remove();
  const tip = document.getElementById("tip");
  let near = null;
  const leave = () => { if (near) near.classList.remove("near"); near = null; tip.hidden = true; };
  const place = (e) => {
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.min(Math.max(4, e.clientX + 14), innerWidth - box.width - 6)}px`;
    tip.style.top = `${e.clientY - box.height - 10 < 4 ? e.clientY + 18 : e.clientY - box.height - 10}px`;
  };
  const distance = (mark, e) => {
    const b = mark.getBoundingClientRect();
    const dx = Math.max(b.left - e.clientX, 0, e.clientX - b.right), dy = Math.max(b.top - e.clientY, 0, e.clientY - b.bottom);
    return dx * dx + dy * dy;
  };
  for (const chart of document.querySelectorAll("svg.chart")) {
    const marks = [...chart.querySelectorAll("[data-tip]")];
    chart.addEventListener("pointermove", (e) => {
      let best = null, least = 40 * 40;
      for (const mark of marks) { const d = distance(mark, e); if (d < least) { least = d; best = mark; } }
      if (best === near && best) return place(e);
      leave();
      if (!best) return;
      near = best;
      near.classList.add("near");
      tip.textContent = near.dataset.tip;
      place(e);
    });
    chart.addEventListener("pointerleave", leave);
  }
})();
