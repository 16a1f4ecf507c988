package node

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// DiskStatus is the room on the medium of the data directory, where the log grows for ever.
type DiskStatus struct {
	Free uint64 `json:"free"` // bytes, for this user
	Size uint64 `json:"size"`
	// Older is how many earlier boots have left a copy of the log there.
	Older int `json:"older"`
}

// leastFree is the room below which status warns: of a few thousand of the largest leaves.
const leastFree = 512 << 20

// diskStatus looks at the medium of the data directory; nil in simulations.
func (n *Node) diskStatus() *DiskStatus {
	var fs unix.Statfs_t
	if n.logDir == "" || unix.Statfs(n.cfg.Data, &fs) != nil {
		return nil
	}
	block := uint64(fs.Bsize)
	out := &DiskStatus{Free: fs.Bavail * block, Size: fs.Blocks * block}
	if logs, err := filepath.Glob(filepath.Join(n.cfg.Data, "boot-*", "log")); err == nil {
		out.Older = max(0, len(logs)-1)
	}
	return out
}

// warnings says when there is little room.
func (d *DiskStatus) warnings(data string) []string {
	if d == nil || d.Free >= leastFree {
		return nil
	}
	return []string{fmt.Sprintf("disk: %d MiB are free where %s is, and the log grows: give it room, or delete boot-… directories of earlier boots (%d of them have a copy of the log)", d.Free>>20, data, d.Older)}
}
