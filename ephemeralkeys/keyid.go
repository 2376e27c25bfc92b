package ephemeralkeys

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

const maxKeyIDPart = 80

// KeyID returns podspawn:<host>:<login>:<subject>, the name under which sshd logs
// a certificate. The parts may be anything: characters outside of the set become
// "=" and two hexadecimal digits, so that different parts give different key ids,
// and a part that is too long ends in "=+" and the start of its digest.
func KeyID(host, login, subject string) string {
	return "podspawn:" + keyIDPart(host) + ":" + keyIDPart(login) + ":" + keyIDPart(subject)
}

func keyIDPart(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("._@/+-", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "=%02X", c)
		}
		if b.Len() > maxKeyIDPart {
			sum := sha256.Sum256([]byte(s))
			return b.String()[:maxKeyIDPart-34] + "=+" + hex.EncodeToString(sum[:16])
		}
	}
	return b.String()
}
