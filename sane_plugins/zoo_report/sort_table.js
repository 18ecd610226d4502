(function () {
  "use strict";
  var table = document.getElementById("networks");
  if (!table) { return; }
  var body = table.tBodies[0];

  function key(row, column) { return row.cells[column].getAttribute("data-key") || ""; }

  function sort(head, column, isUp) {
    var isNumber = head.hasAttribute("data-number");
    var rows = Array.prototype.slice.call(body.rows);
    rows.sort(function (a, b) {
      var x = key(a, column), y = key(b, column);
      if (x === "" || y === "") { return (x === "") - (y === ""); }
      var order = isNumber ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true });
      return isUp ? order : -order;
    });
    rows.forEach(function (row) { body.appendChild(row); });
    Array.prototype.forEach.call(table.tHead.rows[0].cells, function (other) {
      other.removeAttribute("aria-sort");
    });
    head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
  }

  Array.prototype.forEach.call(table.tHead.rows[0].cells, function (head, column) {
    var button = document.createElement("button");
    button.type = "button";
    while (head.firstChild) { button.appendChild(head.firstChild); }
    head.appendChild(button);
    button.addEventListener("click", function () {
      var before = head.getAttribute("aria-sort");
      sort(head, column, before ? before === "descending" : !head.hasAttribute("data-number"));
    });
  });
  document.documentElement.className += " sortable";
})();
