// Filters the runs of a report's page. Without it the page shows all of them.
"use strict";
(() => {
  const form = document.querySelector(".filters");
  const runs = [...document.querySelectorAll(".run")];
  const reveal = () => {
    const run = document.getElementById(location.hash.slice(1));
    if (run instanceof HTMLDetailsElement) { run.hidden = false; run.open = true; run.scrollIntoView(); }
  };
  addEventListener("hashchange", reveal);
  reveal();
  if (!form) return;
  const { find, outcome, guest, wrong, serious } = form.elements;
  const texts = runs.map((run) => run.textContent.toLowerCase());
  const apply = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    runs.forEach((run, index) => {
      const data = run.dataset;
      run.hidden = (outcome.value && data.outcome !== outcome.value) || (guest.value && data.guest !== guest.value) ||
        (wrong.checked && data.ok === "yes") || !words.every((word) => texts[index].includes(word));
      shown += !run.hidden;
    });
    document.body.classList.toggle("serious", serious.checked);
    form.querySelector("output").textContent = `${shown} of ${runs.length} runs`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const [name, open] of [["open", true], ["close", false]])
    form.elements[name].addEventListener("click", () => runs.forEach((run) => { if (!run.hidden) run.open = open; }));
  form.hidden = false;
  apply();
})();
