package agent

import (
	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/podfile"
)

// parse reads the podfile or the spec object of a request, laid over d.
func (s *Service) parse(r api.CreateRequest, d sandbox.Defaults) (sandbox.Spec, error) {
	base := sandbox.Spec{}.WithDefaults(d)
	switch {
	case r.Podfile != "":
		return podfile.Parse([]byte(r.Podfile), base)
	case r.Spec != nil:
		return podfile.FromObject(r.Spec, base)
	}
	return base, nil
}
