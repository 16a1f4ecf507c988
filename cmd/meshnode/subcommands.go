package main

import "github.com/spf13/cobra"

// subcommands lists every subcommand, each made by the file of its name.
func subcommands() []*cobra.Command {
	return []*cobra.Command{
		appraiseCommand(),
		simPlatformCommand(),
		keygenCommand(),
		genesisCommand(),
		enrollCommand(),
		logCommand(),
		versionCommand(),
	}
}
