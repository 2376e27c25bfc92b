package sqlstore

import (
	"os"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// childEnv names the work of a test binary that was started as a child.
const childEnv = "SQLSTORE_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		goleak.VerifyTestMain(m)
	case "write":
		os.Exit(childWrite(os.Args[len(os.Args)-1]))
	case "claim":
		os.Exit(childClaim(os.Args[len(os.Args)-1]))
	case "full":
		os.Exit(childFull(os.Args[len(os.Args)-1]))
	default:
		os.Exit(2)
	}
}

// needRoot skips a test that needs root, unless root is required.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if slices.Contains(strings.Split(os.Getenv("PODSPAWN_TEST_REQUIRE"), ","), "root") {
		t.Fatal("needs root, and root is required")
	}
	t.Skip("needs root")
}
