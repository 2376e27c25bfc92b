// Package fault marks the steps at which a test makes a process die, hang or
// fail. A point is a constant name in the code, such as "manager.start.sealed".
//
// In what is installed it is nothing: without the build tag podspawn_faults every
// function here is empty. With it, a file of the point's name in [Dir] says what
// happens when a process comes by: "kill" (as kill -9 would), "block" (for ever)
// or "error TEXT". It happens once: the file is removed first, by which the test
// sees that the point was reached, where the process may remove it. A sandbox's
// processes see no file of the host's: what concerns them comes in the
// environment, see [Environ].
//
// It knows nothing of what the points mean, and it is the only package of ours
// that the core imports.
package fault
