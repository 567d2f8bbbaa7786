"""How benchmarks are timed: every contender once a round, in turn, so that drift of the machine's speed meets all alike;
medians over rounds, and ratios of times within a round."""

import statistics
import time
from pathlib import Path

import torch


def clock_of(threads):
    """The processor's time of this process where it has one thread, so that what else a machine does counts less; else the clock on the wall."""
    return time.process_time if threads == 1 else time.perf_counter


def interleaved(contenders, rounds, before=lambda name: None, clock=time.perf_counter):
    """contenders: {name: function}. Two calls each to warm up, then one a round, in an order that turns with the round.
    before(name) runs untimed ahead of each call. Returns {name: [seconds of each round, by clock()]}."""
    names = list(contenders)
    seconds = {name: [] for name in names}
    for index in range(rounds + 2):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            before(name)
            start = clock()
            contenders[name]()
            if torch.cuda.is_initialized():  # there a call returns before the work is done
                torch.cuda.synchronize()
            if index >= 2:
                seconds[name].append(clock() - start)
    return seconds


def compare(seconds, ours, peer):
    """The common part of a row: medians, the median ratio peer/ours, and its least and greatest over the rounds."""
    ratios = [b / a for a, b in zip(seconds[ours], seconds[peer])]
    return {
        "ours_s": statistics.median(seconds[ours]),
        "peer": peer,
        "peer_s": statistics.median(seconds[peer]),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def peak_bytes(function):
    """Memory that function takes above what is held when it starts, by the kernel's high-water mark; None off Linux, and where the
    work is done in a GPU's memory, of which this process's mark says nothing."""
    if torch.cuda.is_initialized():
        return None
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the mark falls to what is resident now
    except OSError:
        return None

    def resident(key):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
        return 0

    start = resident("VmRSS:")
    result = function()
    peak = resident("VmHWM:") - start
    del result
    return max(peak, 0)


def read_and_copy(nbytes, device="cpu"):
    """(read, copy): functions that read nbytes (a float32 sum), and that copy them between buffers already there. What
    the machine's memory allows, measured in the same rounds."""
    source = torch.ones(nbytes // 4, device=device)
    target = torch.empty_like(source)
    return source.sum, lambda: target.copy_(source)
