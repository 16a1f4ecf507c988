package main

import "github.com/spf13/cobra"

// subcommands lists every subcommand, each made by the file of its name.
func subcommands() []*cobra.Command {
	return []*cobra.Command{
		demoCommand(),
		appraiseCommand(),
		collateralCommand(),
		attestCommand(),
		measureCommand(),
		proxyCommand(),
		simPlatformCommand(),
		keygenCommand(),
		genesisCommand(),
		enrollCommand(),
		logCommand(),
		runCommand(),
		configCommand(),
		statusCommand(),
		peersCommand(),
		nodeCommand(),
		doctorCommand(),
		redteamCommand(),
		policyCommand(),
		recoverCommand(),
		jobCommand(),
		serviceCommand(),
		versionCommand(),
	}
}
