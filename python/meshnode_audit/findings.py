"""Findings: what is wrong with a log, and where."""

MAX = 100


class Findings:
    """Collects findings (index, code, message) up to a limit and counts the rest."""

    def __init__(self):
        self.list = []
        self.more = 0

    def add(self, index, code, message):
        if len(self.list) >= MAX:
            self.more += 1
        else:
            self.list.append((index, code, message))

    def merge(self, other):
        for f in other.list:
            self.add(*f)
        self.more += other.more

    def sorted(self):
        """By index; those of one index as they came."""
        return sorted(self.list, key=lambda f: f[0])
