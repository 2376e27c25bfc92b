//go:build !podspawn_faults

package fault

// Compiled says whether points do anything in this program.
const Compiled = false

// At is a step at which the process may be killed or stopped.
func At(string) {}

// Err is At for a step that may also fail.
func Err(string) error { return nil }

// Load reads what is set now, for a process that will not be able to.
func Load() {}

// Environ returns the variables that tell a sandbox's processes of their points.
func Environ() []string { return nil }
