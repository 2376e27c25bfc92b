package install

import "github.com/podspawn/podspawn/sandbox"

// refuse is a state of the host that set-up does not change by itself, with what
// the administrator can do about it.
func refuse(msg, hint string) error {
	return &sandbox.Error{Kind: sandbox.KindConflict, Msg: msg, Hint: hint}
}
