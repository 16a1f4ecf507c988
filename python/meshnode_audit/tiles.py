"""The files of a log (c2sp.org/tlog-tiles), and its tree computed again from them.

The tree is RFC 6962's: leaf hash SHA-256(00 leaf), node hash SHA-256(01 left right). It is
computed twice, from the entries and from the hashes in the level-0 tiles, and every tile
of every level is compared. Memory is one bundle and one hash per level and tile.
"""

import errno
import hashlib
import os
import stat

from .findings import Findings

WIDTH = 256
HASH = 32
MAX_BUNDLE = WIDTH * (2 + 65535)
MAX_TILE = WIDTH * HASH
MAX_MISSING = 16  # files in a row
MAX_LINKS = 40
MAX_RUNS = 100
EMPTY_ROOT = hashlib.sha256(b"").digest()


class Missing(Exception):
    """There is no such file."""


class TooLarge(Exception):
    """The file is larger than any valid one."""


class Unavailable(Exception):
    """The file is there and cannot be read, which says nothing about the log."""


class Stop(Exception):
    """Ends a walk whose further leaves nobody vouches for."""


def leaf_hash(leaf):
    return hashlib.sha256(b"\0" + leaf).digest()


def node_hash(left, right):
    return hashlib.sha256(b"\1" + left + right).digest()


class Directory:
    """Reads files below one directory. Nothing outside it is read, and no fifo waited for."""

    def __init__(self, path):
        self.path = path
        if not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, "no such directory", path)

    def _resolve(self, name):
        """Follows symbolic links within the directory; absolute ones lead out of it."""
        todo, done, links = name.split("/")[::-1], [], 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if not done:
                    raise Unavailable(f"{name} leads out of the log")
                done.pop()
                continue
            try:
                target = os.readlink(os.path.join(self.path, *done, part))
            except OSError:  # no link, or nothing there
                done.append(part)
                continue
            links += 1
            if links > MAX_LINKS or target.startswith("/"):
                raise Unavailable(f"{name} leads out of the log, or nowhere")
            todo += target.split("/")[::-1]
        return os.path.join(self.path, *done)

    def read(self, name, limit):
        try:
            fd = os.open(self._resolve(name), os.O_NOFOLLOW | os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ENOTDIR):
                raise Missing(name) from None
            raise Unavailable(f"{name}: {e.strerror}") from None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Missing(f"{name} is no regular file")
            with open(fd, "rb", closefd=False) as f:
                data = f.read(limit + 1)
        except OSError as e:
            raise Unavailable(f"{name}: {e.strerror}") from None
        finally:
            os.close(fd)
        if len(data) > limit:
            raise TooLarge(name)
        return data

    def has_tiles(self):
        return os.path.isdir(os.path.join(self.path, "tile"))

    def tile(self, level, n, width, limit):
        """The bytes of a tile, and whether they are those of the full one in its place."""
        name = tile_path(level, n)
        if width == WIDTH:
            return self.read(name, limit), False
        try:
            return self.read(f"{name}.p/{width}", limit), False
        except Missing:
            return self.read(name, limit), True


def tile_path(level, n):
    """tile/<L>/<N>, N in groups of three digits, all but the last with a leading x."""
    groups = [f"{n % 1000:03d}"]
    while n >= 1000:
        n //= 1000
        groups.append(f"x{n % 1000:03d}")
    return f"tile/{level}/" + "/".join(reversed(groups))


class Accumulator:
    """The root of leaf hashes as they come: one hash for each complete subtree at the right."""

    def __init__(self):
        self.size = 0
        self.stack = []  # (level, hash), levels falling

    def append(self, h, formed=None):
        """Adds a leaf hash; formed(level, hash) is told of every subtree that is complete by it."""
        level = 0
        self.size += 1
        while self.stack and self.stack[-1][0] == level:
            h = node_hash(self.stack.pop()[1], h)
            level += 1
            if formed:
                formed(level, h)
        self.stack.append((level, h))

    def root(self):
        if not self.stack:
            return EMPTY_ROOT
        h = self.stack[-1][1]
        for _, left in reversed(self.stack[:-1]):
            h = node_hash(left, h)
        return h


class Lane:
    """One computation of the tree, and the hashes of upper tiles that are not compared yet."""

    def __init__(self):
        self.tree = Accumulator()
        self.nodes = {}  # level of tiles ≥ 1: hashes
        self.diffs = Findings()
        self.first = None

    def append(self, h):
        self.tree.append(h, self.formed)

    def formed(self, level, h):
        if level % 8 == 0:
            self.nodes.setdefault(level // 8, []).append(h)

    def compare(self, level, n, hashes):
        for i, h in enumerate(hashes):
            if h == self.nodes[level][i]:
                continue
            first = (n * WIDTH + i) << (8 * level)
            last = first + (1 << (8 * level)) - 1
            text = f"{tile_path(level, n)} holds another hash for leaves {first} to {last} than they give"
            self.diffs.add(first, "tile_mismatch", text)
            if self.first is None:
                self.first = (first, text)


class Walk:
    """Reads all entries and tiles of a log at a size and root, and calls leaf(index, bytes) for
    each entry in order, up to the first that cannot be read."""

    def __init__(self, log, size, root, leaf):
        self.log, self.size, self.want, self.give = log, size, root, leaf
        self.entries, self.hashes = Lane(), Lane()
        self.findings = Findings()
        self.read = 0
        self.gap = self.broken = False
        self.missing = 0
        self.runs, self.cut = [], 0

    def run(self):
        for base in range(0, self.size, WIDTH):
            self.chunk(base, min(WIDTH, self.size - base))
            if self.missing > MAX_MISSING:
                self.findings.add(base, "entries_missing", f"{self.missing} files in a row are missing; the rest of {self.size} entries was not looked for")
                self.broken = True
                return
            self.upper(False)
        self.upper(True)
        self.judge()

    def chunk(self, base, width):
        n = base // WIDTH
        entries, problem = self.bundle(n, width)
        self.note(base, problem)
        hashes, problem = self.tile(0, n, width)
        self.note(base, problem)
        for i, leaf in enumerate(entries):
            if self.gap:
                break
            self.give(base + i, leaf)
            self.read += 1
        if len(entries) < width:
            self.gap = True
            self.broken = self.broken or len(hashes) < width
        if self.broken:
            return
        for i in range(width):
            of_entry = leaf_hash(entries[i]) if i < len(entries) else hashes[i]
            of_tile = hashes[i] if i < len(hashes) else of_entry
            if of_entry != of_tile:
                self.differ(base + i)
            self.entries.append(of_entry)
            self.hashes.append(of_tile)

    def bundle(self, n, width):
        """Entries, and a problem (code, offset, text) that comes with the entries before it."""
        name = tile_path("entries", n)
        try:
            data, full = self.log.tile("entries", n, width, MAX_BUNDLE)
        except Missing:
            return [], ("entries_missing", 0, f"{name} is missing")
        except TooLarge:
            return [], ("entries_malformed", 0, f"{name} is larger than any valid bundle")
        entries, at = [], 0
        while len(entries) < width:
            end = at + 2 + int.from_bytes(data[at:at + 2], "big")
            if at + 2 > len(data) or end > len(data):
                return entries, ("entries_malformed", len(entries), f"{name}: entry {len(entries)} of {width} cannot be read")
            entries.append(data[at + 2:end])
            at = end
        if at < len(data) and not full:
            return entries, ("entries_malformed", width - 1, f"{name}: {len(data) - at} bytes follow the last of {width} entries")
        return entries, None

    def tile(self, level, n, width):
        name = tile_path(level, n)
        try:
            data, full = self.log.tile(level, n, width, MAX_TILE)
        except Missing:
            return [], ("tile_missing", 0, f"{name} is missing")
        except TooLarge:
            return [], ("tile_malformed", 0, f"{name} is larger than any valid tile")
        hashes = [data[i * HASH:(i + 1) * HASH] for i in range(min(width, len(data) // HASH))]
        if len(data) < width * HASH or len(data) > width * HASH and not full:
            return hashes, ("tile_malformed", len(hashes) % width, f"{name} has {len(data)} bytes, want {width * HASH}")
        return hashes, None

    def note(self, base, problem):
        if problem is None:
            self.missing = 0
            return
        code, offset, text = problem
        if code in ("entries_missing", "tile_missing"):
            self.missing += 1
        self.findings.add(base + offset, code, text)

    def differ(self, index):
        if self.runs and self.runs[-1][1] + 1 == index:
            self.runs[-1][1] = index
        elif len(self.runs) == MAX_RUNS:
            self.cut += 1
        else:
            self.runs.append([index, index])

    def upper(self, end):
        """Compares the tiles above level 0 that have become full, at the end the partial ones too."""
        if self.broken:
            return
        for level in sorted(self.entries.nodes):
            width = len(self.entries.nodes[level])
            if width == 0 or width < WIDTH and not end:
                continue
            n = ((self.entries.tree.size >> (8 * level)) - 1) // WIDTH
            hashes, problem = self.tile(level, n, width)
            if problem:
                code, offset, text = problem
                self.note((n * WIDTH + offset) << (8 * level), (code, 0, text))
            for lane in (self.entries, self.hashes):
                lane.compare(level, n, hashes)
                lane.nodes[level] = []

    def judge(self):
        """Turns differences into findings: named is what does not lead to the checkpoint's root."""
        if self.broken:
            return
        root, other = self.entries.tree.root(), self.hashes.tree.root()
        truth = self.entries
        code, text = "entry_mismatch", "entry {} is not the one whose hash the tree holds"
        if root == self.want:
            code, text = "tile_mismatch", "the level-0 tile holds another hash than entry {} gives"
        elif other == self.want:
            truth = self.hashes
        else:
            index, where = self.size, "nothing else says where they differ"
            if self.runs:
                index = self.runs[0][0]
                where = f"entries and tiles first differ at leaf {index}"
            elif self.entries.first:
                index, where = self.entries.first
            self.findings.add(index, "root_mismatch", f"the checkpoint of size {self.size} says root {self.want.hex()}, the entries give {root.hex()}; {where}")
        for first, last in self.runs:
            self.findings.add(first, code, text.format(first if first == last else f"{first} (and every following one to {last})"))
        self.findings.more += self.cut
        self.findings.merge(truth.diffs)
