package run

import "time"

// Limits on what a program may take from the machine that serves it, beside the sizes of
// package service. They are part of the measured program: no configuration changes them.
const (
	// memoryBase and memoryPerModel bound each process's writable memory (RLIMIT_DATA): a
	// program may hold its weights in another form, twice as large.
	memoryBase     = 1 << 30
	memoryPerModel = 2
	// maxProcesses bounds processes and threads (RLIMIT_NPROC).
	maxProcesses = 128
	// maxFiles bounds open files, connections among them.
	maxFiles = 1024
	// maxScratch bounds /tmp, which is memory too, and each file in it.
	maxScratch = 64 << 20
	// memoryReserve is what must stay available besides program, model and their copies.
	memoryReserve = 256 << 20
	// maxSetupText bounds what is kept of the sandbox's own words before the program runs.
	maxSetupText = 2 << 10
)

// Times.
const (
	setupWithin   = 10 * time.Second // the sandbox stands
	reapWithin    = 5 * time.Second  // a killed sandbox's pipes close
	probeEvery    = 50 * time.Millisecond
	probeWithin   = 5 * time.Second // one answer to the probe
	restartFirst  = 250 * time.Millisecond
	restartLast   = 15 * time.Second
	restartForget = time.Minute // a run that lasted so long counts as a fresh start
	// maxRestarts is how often in a row a program is started again before it is given up.
	maxRestarts = 5
)
