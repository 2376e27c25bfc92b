package main

import "github.com/spf13/cobra"

// commandsOf makes every command of this version, in the order of the help.
func commandsOf(a *app) []*cobra.Command {
	return []*cobra.Command{
		newCreateCommand(a),
		newListCommand(a),
		newGetCommand(a),
		newExtendCommand(a),
		newDestroyCommand(a),
		newSSHCommand(a),
		newCertCommand(a),
		newExecCommand(a),
		newCpCommand(a),
		newRunCommand(a),
		newMCPCommand(a),
		newInitCommand(a),
		newValidateCommand(a),
		newTokenCommand(a),
		newCACommand(a),
		newDrainCommand(a),
		newAuditCommand(a),
		newImageCommand(a),
		newServerSetupCommand(a),
		newAddUserCommand(a),
		newRemoveUserCommand(a),
		newListUsersCommand(a),
		newAuthKeysCommand(a),
		newDoctorCommand(a),
		newBackupCommand(a),
		newRestoreCommand(a),
		newDaemonCommand(a),
		newServeCommand(a),
		newResolverCommand(a),
		newConfigCommand(a),
		newVersionCommand(a),
	}
}
