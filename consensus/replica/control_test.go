package replica

func runControl() bool { return false }
