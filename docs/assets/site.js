// Typesets what pymdownx.arithmatex marked: \(...\) within a line, \[...\] on a line of its own.
document.addEventListener("DOMContentLoaded", () => {
  for (const place of document.querySelectorAll(".arithmatex")) {
    const [, open, formula] = place.textContent.trim().match(/^(\\[([])([^]*)\\[)\]]$/) ?? [];
    if (formula === undefined) continue;
    try {
      katex.render(formula, place, { displayMode: open === "\\[" });
    } catch (error) {
      console.error(error.message); // the formula stays as it is written
    }
  }
});

// What is wider than the page and scrolls by itself can be scrolled by keys too.
const reach = () => {
  for (const place of document.querySelectorAll(".md-typeset__scrollwrap, div.arithmatex")) {
    if (place.scrollWidth > place.clientWidth) place.tabIndex = 0;
    else place.removeAttribute("tabindex");
  }
};
addEventListener("load", () => setTimeout(reach));

// The theme has a landmark for the button of every block of code, all of one name, and two that are called Navigation.
const name = () => {
  document.querySelector(".md-path")?.setAttribute("aria-label", "Breadcrumbs");
  for (const place of document.querySelectorAll(".md-code__nav")) place.setAttribute("role", "none");
};
addEventListener("load", () => setTimeout(name));
addEventListener("resize", reach);
