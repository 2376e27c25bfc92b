package ephemeralkeys

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"
)

// KRL says what is revoked. Serials are revoked for certificates of the CAs (of
// every CA when there are none), key ids too; Keys are revoked by themselves, and,
// when they are CAs, with all that they signed. A client's key belongs in Keys
// only if the key itself is lost: several certificates may have the same one.
type KRL struct {
	Version   uint64 // grows with each list
	Generated time.Time
	Comment   string
	CAs       []ssh.PublicKey
	Serials   []uint64 // in any order, also doubled
	KeyIDs    []string
	Keys      []ssh.PublicKey
}

// Section types, from OpenSSH's PROTOCOL.krl.
const (
	krlMagic         = "SSHKRL\n\x00"
	krlFormat        = 1
	krlCertificates  = 1
	krlExplicitKey   = 2
	krlSerialList    = 0x20
	krlSerialRange   = 0x21
	krlSerialBitmap  = 0x22
	krlKeyID         = 0x23
	maxKRLComment    = 256
	maxRevokedKeyIDs = 1 << 20
)

// MarshalKRL returns the list in the form that sshd's RevokedKeys reads. An empty
// one is valid, and is what a host without revocations needs: sshd refuses
// everybody when the file is missing. It is not signed, since sshd trusts the
// file's owner.
func MarshalKRL(k KRL) ([]byte, error) {
	if slices.Contains(k.Serials, 0) {
		// OpenSSH takes 0 for "has no serial" and can't read a list that has it.
		return nil, fmt.Errorf("%w: serial 0 can't be revoked", ErrKRL)
	}
	if len(k.KeyIDs) > maxRevokedKeyIDs {
		return nil, fmt.Errorf("%w: %d key ids", ErrKRL, len(k.KeyIDs))
	}
	for _, id := range k.KeyIDs {
		if !keyIDPattern.MatchString(id) {
			return nil, fmt.Errorf("%w: %q is no key id", ErrKRL, clip(id))
		}
	}
	for _, key := range slices.Concat(k.CAs, k.Keys) {
		if key == nil {
			return nil, fmt.Errorf("%w: no key", ErrKRL)
		}
		if err := checkKey(key); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrKRL, err)
		}
	}

	out := []byte(krlMagic)
	out = binary.BigEndian.AppendUint32(out, krlFormat)
	out = binary.BigEndian.AppendUint64(out, k.Version)
	out = binary.BigEndian.AppendUint64(out, uint64(max(k.Generated.Unix(), 0)))
	out = binary.BigEndian.AppendUint64(out, 0) // flags
	out = appendString(out, nil)                // reserved
	comment := oneLine(k.Comment)
	out = appendString(out, []byte(comment[:min(len(comment), maxKRLComment)]))

	if revoked := certificateSections(k); len(revoked) > 0 {
		for _, blob := range caBlobs(k.CAs) {
			section := appendString(nil, blob)
			section = appendString(section, nil) // reserved
			out = appendSection(out, krlCertificates, append(section, revoked...))
		}
	}
	if keys := sortedBlobs(k.Keys); len(keys) > 0 {
		var section []byte
		for _, blob := range keys {
			section = appendString(section, blob)
		}
		out = appendSection(out, krlExplicitKey, section)
	}
	return out, nil
}

// caBlobs returns an empty blob, which stands for every CA, when there are none.
func caBlobs(cas []ssh.PublicKey) [][]byte {
	if len(cas) == 0 {
		return [][]byte{nil}
	}
	return sortedBlobs(cas)
}

func sortedBlobs(keys []ssh.PublicKey) [][]byte {
	var blobs [][]byte
	for _, k := range keys {
		blobs = append(blobs, k.Marshal())
	}
	slices.SortFunc(blobs, slices.Compare)
	return slices.CompactFunc(blobs, slices.Equal)
}

// certificateSections returns what is revoked of each CA.
func certificateSections(k KRL) []byte {
	out := serialSections(k.Serials)
	if ids := slices.Compact(slices.Sorted(slices.Values(k.KeyIDs))); len(ids) > 0 {
		var section []byte
		for _, id := range ids {
			section = appendString(section, []byte(id))
		}
		out = appendSection(out, krlKeyID, section)
	}
	return out
}

// run is a row of contiguous serials, both ends included.
type run struct{ first, last uint64 }

// bitmapSpan is how many serials one bitmap covers at most: OpenSSH reads numbers
// of up to 16384 bits.
const bitmapSpan = 8192

// serialSections writes serials in the smallest of the three forms: a list of 8
// bytes each, a range of 16, or a bitmap of 1 bit for each serial of its span.
func serialSections(serials []uint64) []byte {
	runs := serialRuns(serials)
	var out, list []byte
	for len(runs) > 0 {
		n := 1
		for n < len(runs) && runs[n].last-runs[0].first < bitmapSpan {
			n++
		}
		ranges, listed := 0, 0
		for _, r := range runs[:n] {
			if length := r.last - r.first; length >= 3 {
				ranges += 5 + 16
			} else {
				listed += 8 * int(length+1)
			}
		}
		span := runs[n-1].last - runs[0].first
		if span < bitmapSpan && 5+8+4+1+int(span/8+1) < ranges+listed {
			out = appendSection(out, krlSerialBitmap, bitmap(runs[:n]))
			runs = runs[n:]
			continue
		}
		r := runs[0]
		runs = runs[1:]
		if r.last-r.first >= 3 {
			section := binary.BigEndian.AppendUint64(nil, r.first)
			out = appendSection(out, krlSerialRange, binary.BigEndian.AppendUint64(section, r.last))
			continue
		}
		for s := r.first; ; s++ {
			list = binary.BigEndian.AppendUint64(list, s)
			if s == r.last {
				break
			}
		}
	}
	if len(list) > 0 {
		out = appendSection(out, krlSerialList, list)
	}
	return out
}

func serialRuns(serials []uint64) []run {
	var runs []run
	for _, s := range slices.Compact(slices.Sorted(slices.Values(serials))) {
		if n := len(runs); n > 0 && runs[n-1].last != math.MaxUint64 && runs[n-1].last+1 == s {
			runs[n-1].last = s
			continue
		}
		runs = append(runs, run{s, s})
	}
	return runs
}

// bitmap writes the offset and an mpint whose bit i stands for offset + i.
func bitmap(runs []run) []byte {
	offset := runs[0].first
	bits := make([]byte, (runs[len(runs)-1].last-offset)/8+1)
	for _, r := range runs {
		for i := r.first - offset; i <= r.last-offset; i++ {
			bits[len(bits)-1-int(i/8)] |= 1 << (i % 8)
		}
	}
	if bits[0]&0x80 != 0 {
		bits = append([]byte{0}, bits...) // an mpint whose first bit is set is negative
	}
	return appendString(binary.BigEndian.AppendUint64(nil, offset), bits)
}

func appendSection(out []byte, kind byte, data []byte) []byte {
	return appendString(append(out, kind), data)
}

func appendString(out, s []byte) []byte {
	return append(binary.BigEndian.AppendUint32(out, uint32(len(s))), s...)
}

// CheckKRL returns an error unless list is a whole revocation list in the form
// that sshd reads: sshd refuses everybody while the file is cut short. It looks at
// the frame and not at what the sections say.
func CheckKRL(list []byte) error {
	rest, ok := bytes.CutPrefix(list, []byte(krlMagic))
	if !ok || len(rest) < 4+3*8 || binary.BigEndian.Uint32(rest) != krlFormat {
		return fmt.Errorf("%w: no revocation list", ErrKRL)
	}
	rest = rest[4+3*8:]
	for range 2 { // reserved, comment
		if _, rest, ok = cutString(rest); !ok {
			return fmt.Errorf("%w: it ends in its head", ErrKRL)
		}
	}
	for len(rest) > 0 {
		if _, rest, ok = cutString(rest[1:]); !ok {
			return fmt.Errorf("%w: it ends in a section", ErrKRL)
		}
	}
	return nil
}

func cutString(b []byte) (s, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(len(b)-4) < uint64(n) {
		return nil, nil, false
	}
	return b[4 : 4+n], b[4+n:], true
}
