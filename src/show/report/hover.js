
// What a pointer on a curve tells stands in the titles of its columns, so that it is there without this script too.
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  for (const column of document.querySelectorAll("svg .column")) {
    const title = column.querySelector("title");
    const text = title.textContent;
    title.remove();
    const show = (event) => {
      tip.textContent = text;
      tip.hidden = false;
      const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
      const top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8);
      tip.style.left = `${Math.max(8, left)}px`;
      tip.style.top = `${Math.max(8, top)}px`;
    };
    column.addEventListener("pointermove", show);
    column.addEventListener("pointerdown", show);
    column.addEventListener("pointerleave", () => (tip.hidden = true));
  }
})();
