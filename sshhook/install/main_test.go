package install

import (
	"testing"

	"github.com/podspawn/podspawn/sshhook/sshdtest"
)

func TestMain(m *testing.M) { sshdtest.Main(m, nil) }
