for (const box of document.querySelectorAll("input.search")) {
  const table = document.getElementById(box.dataset.table), body = table.tBodies[0], rows = [...body.rows];
  box.hidden = false;
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  });
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    let rising = false;
    head.classList.add("sorts");
    head.addEventListener("click", (event) => {
      if (event.target.closest("a")) return;
      rising = !rising;
      const value = (row) => row.cells[column].textContent;
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)], difference = Number(x) - Number(y);
        return (rising ? 1 : -1) * (Number.isNaN(difference) ? x.localeCompare(y) : difference);
      });
      body.append(...rows);
    });
  });
}
