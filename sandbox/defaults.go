package sandbox

import "time"

// DefaultWorkspace is where sessions start when nothing says otherwise.
const DefaultWorkspace = "/workspace"

// DefaultImage is the image of a spec that names none: what podspawn image build makes.
const DefaultImage = "podspawn/base"

// Defaults complete a spec: they come from the host's configuration and from the
// way in by which a sandbox is made (the table under "Lifetime" in the contract).
type Defaults struct {
	Image     string
	Resources Resources
	Lifecycle Lifecycle
	SSH       SSHRights
	Egress    Egress // "" is EgressNone
}

// DefaultResources is what a sandbox gets when neither spec nor configuration
// says otherwise: enough to compile something, little enough that a handful of
// them don't starve a small host.
func DefaultResources() Resources {
	return Resources{CPUs: 1, Memory: 1 << 30, Disk: 10 << 30, PIDs: 512}
}

// DefaultLifecycle is that of a sandbox made over HTTP or by the command line.
func DefaultLifecycle() Lifecycle {
	return Lifecycle{TTL: time.Hour, IdleTimeout: 15 * time.Minute, OnExit: OnExitDestroy, Grace: time.Minute}
}

// BuiltinDefaults are those of a host whose configuration says nothing.
func BuiltinDefaults() Defaults {
	return Defaults{
		Image:     DefaultImage,
		Resources: DefaultResources(),
		Lifecycle: DefaultLifecycle(),
		SSH:       SSHRights{Forwarding: true, SFTP: true},
		Egress:    EgressPublic,
	}
}

// WithDefaults returns the spec with every zero value filled from d. A zero that
// somebody asked for (grace 0s, sftp false) looks like one that nobody set, so
// whatever can tell them apart starts from Spec{}.WithDefaults(d) and lays what
// was asked for over it, as podfile.Parse does.
func (s Spec) WithDefaults(d Defaults) Spec {
	fill(&s.Image, d.Image)
	fill(&s.Workspace, DefaultWorkspace)
	fill(&s.Network.Egress, d.Egress)
	fill(&s.Network.Egress, EgressNone)
	fill(&s.Resources.CPUs, d.Resources.CPUs)
	fill(&s.Resources.Memory, d.Resources.Memory)
	fill(&s.Resources.Disk, d.Resources.Disk)
	fill(&s.Resources.PIDs, d.Resources.PIDs)
	fill(&s.Lifecycle.TTL, d.Lifecycle.TTL)
	fill(&s.Lifecycle.IdleTimeout, d.Lifecycle.IdleTimeout)
	fill(&s.Lifecycle.OnExit, d.Lifecycle.OnExit)
	fill(&s.Lifecycle.Grace, d.Lifecycle.Grace)
	fill(&s.SSH, d.SSH)
	return s
}

func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
