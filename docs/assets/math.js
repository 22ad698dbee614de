// Typesets what pymdownx.arithmatex marked: \(...\) within a line, \[...\] on a line of its own.
document.addEventListener("DOMContentLoaded", () => {
  for (const place of document.querySelectorAll(".arithmatex")) {
    const [, open, formula] = place.textContent.trim().match(/^(\\[([])([^]*)\\[)\]]$/) ?? [];
    if (formula === undefined) continue;
    const displayMode = open === "\\[";
    try {
      katex.render(formula, place, { displayMode });
    } catch (error) {
      console.error(error.message); // the formula stays as it is written
      continue;
    }
    if (displayMode && place.scrollWidth > place.clientWidth) place.tabIndex = 0; // scrolled by keys too
  }
});
