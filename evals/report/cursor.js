document.querySelectorAll('svg[data-points]').forEach(svg => {
  const points = JSON.parse(svg.dataset.points), cursor = svg.querySelector('.cursor');
  const output = svg.parentElement.querySelector('output'), rest = output.textContent;
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    let near = points[0];
    for (const point of points) if (Math.abs(point[2] - x) < Math.abs(near[2] - x)) near = point;
    cursor.style.visibility = 'visible';
    cursor.querySelector('line').setAttribute('x1', near[2]);
    cursor.querySelector('line').setAttribute('x2', near[2]);
    cursor.querySelector('circle').setAttribute('cx', near[2]);
    cursor.querySelector('circle').setAttribute('cy', near[3]);
    output.textContent = 'step ' + Math.round(near[0]) + ': ' + Number(near[1].toPrecision(4));
  });
  svg.addEventListener('pointerleave', () => {
    cursor.style.visibility = 'hidden';
    output.textContent = rest;
  });
});
