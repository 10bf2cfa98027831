"""Thresholds: every range that a claim states, with the reason for its ends; the report prints them."""

from dataclasses import replace

from loopprobe.study.rules import about_equal, above, below

# Of ratios
LOWER = below(0.95, why="lower means lower by a twentieth at least: smaller differences are ignored")
A_PLACE_LOWER = below(0.1, why="by decimal places means by one of them at least: a tenth of the error")
LOWER_EACH = replace(LOWER, each=True)
HIGHER = above(1 / 0.95, why="higher means higher by a twentieth at least: smaller differences are ignored")
EQUAL = about_equal(1.25, why="about equal means within a quarter, which is less than seeds of a kind differ by")
STAYS = below(1.2, why="an error stays while it grows by less than a fifth, which is less than seeds differ by")
GROWS = above(1.2, why="an error grows when it does so by a fifth at least")
WELL = below(2.0, why="a model with a twelfth of the layers does well when it errs at most twice as much")
NO_BETTER = above(0.9, why="more loops do not help while they lower the error by less than a tenth")
WIDER = above(1.5, why="errors spread much more when their spread is half as large again")
# Of shares, and of what one exceeds another by
MORE = above(0.01, neutral=0, why="more means a hundredth more at least: of tokens, or of R²")
MORE_EACH = replace(MORE, each=True)
NO_MORE = below(0.01, neutral=0, why="no more failures means a share that is higher by less than a hundredth")
NO_LESS = above(-0.01, neutral=0, why="no less accurate means an accuracy that is lower by less than a hundredth")
RESTS = above(0.95, why="a model comes to rest when nineteen of twenty tokens do")
AS_GOOD = above(-0.05, neutral=0, why="as good means right on at most a twentieth of the prompts less")
FEWER = below(-0.05, neutral=0, why="worse means right on a twentieth of the prompts less at least")
FAR_BETTER = above(0.2, neutral=0, why="far better means right on a fifth of the prompts more at least")
SOLVED = above(0.9, why="a length is solved when nine of ten prompts are right as a whole")
FOUND = above(0.9, why="sparse functions are found when on nine of ten prompts the error is below that of a failure")
HALF = below(0.5, neutral=0, why="without its loops a task is lost when most prompts are wrong")
READ = above(0.9, why="a result stands in the state when it is read right on nine of ten prompts")
NOT_YET = below(0.5, neutral=0, why="a result does not stand in the state yet when it is mostly read wrong")
LATER = below(-0.1, neutral=0, why="a result comes later when it is read on a tenth fewer of the prompts at that loop")
RETURNS = above(0.5, why="most means more than half")
TOLD = above(
    0.7,
    neutral=0.5,
    why="told means that of a prompt that fails and one that does not it names the right one in seven of ten",
)
KEEPS = above(0.9, why="nine tenths of the behaviour are what the claim says")
GONE = below(0.1, neutral=0, why="a behaviour is gone when less than a tenth of it is left")
SAME = above(0.5, neutral=0, why="most edges are the same when more than half of those in either circuit are in both")
COMMON = above(0.05, neutral=0, why="more in common than by chance means a twentieth of the edges more at least")
COMPUTED = above(0.1, neutral=0, why="a result is computed when it is read on a tenth more prompts than untrained")
# Of correlations, the first of ranks
IN_ORDER = below(-0.8, neutral=-1, why="an error grows as n shrinks when their ranks correlate with at most -0.8")
ALIKE = above(0.9, why="loops do the same when the cosine of their edges is at least 0.9")
