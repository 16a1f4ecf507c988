// Command meshnode runs and inspects the nodes of a mesh. One file per subcommand; each
// parses, calls one room of the house and prints.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(run()) }

// run is main without os.Exit, so that testscript can call it in its own process.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends what does not listen to the first
	return execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}
