// The average price of the day so far.

/** Return it from a tick: shares where the source counts them, else lots of a hundred; 0 where it has none. */
export function averageOf(tick) {
    const shares = tick.pvolume > 0 ? tick.pvolume : tick.volume * 100;
    const average = shares > 0 ? tick.amount / shares : 0;
    // An index counts in units of its own, whose quotient is no price.
    return tick.lastPrice > 0 && Math.abs(average / tick.lastPrice - 1) < 0.5 ? average : 0;
}
