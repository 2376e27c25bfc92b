package agent

import (
	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
)

// parse reads the podfile or the spec object of a request, completed with d.
func (s *Service) parse(r api.CreateRequest, d sandbox.Defaults) (sandbox.Spec, error) {
	if r.Podfile != "" || r.Spec != nil {
		return sandbox.Spec{}, sandbox.Errorf(sandbox.KindInvalidSpec, "", "podfiles are not wired yet")
	}
	return sandbox.Spec{}.WithDefaults(d), nil
}
