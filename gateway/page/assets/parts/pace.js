// Back-pressure: a page that cannot draw in time asks the gateway for fewer frames of each code (`max_rate_ms`).
//
// The gateway sees how late a browser's library reads, and not how late this page is. So the page looks at itself: a
// frame of the screen comes too late when the records that wait before it take too long.

const STEPS = [0, 100, 250, 500, 1000];
// Milliseconds until the next frame of the screen that are too many, and few enough; no busy page takes the longest.
const LATE = 80;
const GOOD = 30;
const HIDDEN = 2000;
// Frames of the screen, one after the other, after which the pace changes.
const SLOWER_AFTER = 25;
const FASTER_AFTER = 900;

export class Pace {
    /** Call `change` when the pace has changed, so that the subscriptions are made anew. */
    constructor(change) {
        this.change = change;
        this.step = navigator.connection?.saveData ? 3 : 0;
        this.late = 0;
        this.good = 0;
        this.asked = false;
        this.look = this.look.bind(this);
    }

    get ms() {
        return STEPS[this.step];
    }

    /** Note that records came. */
    busy() {
        if (this.asked) return;
        this.asked = true;
        this.askedAt = performance.now();
        requestAnimationFrame(this.look);
    }

    look() {
        this.asked = false;
        const waited = performance.now() - this.askedAt;
        // A page that was hidden has not been late.
        if (waited > HIDDEN) return;
        this.late = waited > LATE ? this.late + 1 : 0;
        this.good = waited < GOOD ? this.good + 1 : 0;
        if (this.late >= SLOWER_AFTER && this.step < STEPS.length - 1) this.go(this.step + 1);
        else if (this.good >= FASTER_AFTER && this.step > 0) this.go(this.step - 1);
    }

    go(step) {
        this.step = step;
        this.late = this.good = 0;
        this.change();
    }
}
