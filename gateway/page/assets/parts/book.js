// The curve of a depth: what could be bought or sold up to each price. Drawn on a canvas.

/** Return both sides as prices and sums of volumes, best first, as far as `levels` levels reach. */
export function sums(record, levels) {
    const side = (prices, volumes) => {
        const found = {prices: [], sums: []};
        let sum = 0;
        for (let at = 0; at < Math.min(prices.length, levels); at++) {
            if (!(prices[at] > 0)) break;
            sum += volumes[at] ?? 0;
            found.prices.push(prices[at]);
            found.sums.push(sum);
        }
        return found;
    };
    return {bid: side(record.bidPrice ?? [], record.bidVolume ?? []), ask: side(record.askPrice ?? [], record.askVolume ?? [])};
}

const FOOT = 20;
// Prices below the curve, where there is room for them.
const TICKS = 5;
const FEW = 3;
const ROOM = 330;

/** Draw the curve; `look` has colours and font, `shown` writes prices and volumes. */
export function drawBook(canvas, record, levels, look, shown) {
    const box = canvas.getBoundingClientRect();
    const ratio = devicePixelRatio;
    const width = Math.round(box.width * ratio);
    const height = Math.round(box.height * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) {
        canvas.width = width;
        canvas.height = height;
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, box.width, box.height);
    const {bid, ask} = sums(record, levels);
    const most = Math.max(bid.sums.at(-1) ?? 0, ask.sums.at(-1) ?? 0);
    const best = [bid.prices[0], ask.prices[0]].filter((each) => each > 0);
    if (!most || !best.length) return;
    const middle = best.reduce((sum, each) => sum + each, 0) / best.length;
    const reach = Math.max(middle - (bid.prices.at(-1) ?? middle), (ask.prices.at(-1) ?? middle) - middle, middle * 1e-4);
    const floor = box.height - FOOT;
    const x = (price) => box.width / 2 + ((price - middle) / reach) * (box.width / 2 - 1);
    const y = (sum) => floor - (sum / most) * (floor - 14);
    pen.font = look.font;
    pen.lineWidth = 1;
    pen.strokeStyle = look.grid;
    pen.fillStyle = look.soft;
    for (let at = 1; at <= 3; at++) {
        const line = Math.round(y((most * at) / 3)) + 0.5;
        pen.beginPath();
        pen.moveTo(0, line);
        pen.lineTo(box.width, line);
        pen.stroke();
        pen.textAlign = "left";
        pen.fillText(shown.volume((most * at) / 3), 2, line - 3);
    }
    for (const [side, colour, fill] of [[bid, look.bid, look.bidFill], [ask, look.ask, look.askFill]]) {
        if (!side.prices.length) continue;
        pen.beginPath();
        pen.moveTo(x(side.prices[0]), floor);
        let before = floor;
        for (let at = 0; at < side.prices.length; at++) {
            const across = x(side.prices[at]);
            pen.lineTo(across, before);
            before = y(side.sums[at]);
            pen.lineTo(across, before);
        }
        const edge = side === bid ? 0 : box.width;
        pen.lineTo(edge, before);
        pen.strokeStyle = colour;
        pen.lineWidth = 1.5;
        pen.stroke();
        pen.lineTo(edge, floor);
        pen.closePath();
        pen.fillStyle = fill;
        pen.fill();
    }
    pen.strokeStyle = look.soft;
    pen.lineWidth = 1;
    pen.setLineDash([2, 3]);
    pen.beginPath();
    pen.moveTo(Math.round(x(middle)) + 0.5, 0);
    pen.lineTo(Math.round(x(middle)) + 0.5, floor);
    pen.stroke();
    pen.setLineDash([]);
    pen.fillStyle = look.soft;
    const ticks = box.width < ROOM ? FEW : TICKS;
    for (let at = 0; at < ticks; at++) {
        const price = middle + reach * ((2 * at) / (ticks - 1) - 1);
        pen.textAlign = at === 0 ? "left" : at === ticks - 1 ? "right" : "center";
        pen.fillText(shown.price(price), x(price), box.height - 5);
    }
}
