package inference

import (
	"runtime"
	"testing"
)

func TestInference(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: world.start
	w := newWorld(t)
	owner := w.key("service", w.path("charlie", "owner.pem"))
	w.found(owner)
	t.Log("founded", w.nodes["bob"].ready)
}
