package resolver

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/podspawn/podspawn/sandbox"
)

const (
	// maxQuery is far above any question: 255 bytes of name and an OPT record.
	maxQuery = 1024
	// udpSize is the largest answer over UDP, there and back: it is never fragmented.
	udpSize    = 1232
	minUDPSize = 512
	maxAnswer  = 1<<16 - 1
	typeOPT    = dnsmessage.TypeOPT
)

var (
	errNotQuery   = errors.New("this is no question")
	errMismatched = errors.New("this is no answer to the question")
)

// query is a checked question.
type query struct {
	id       uint16
	question dnsmessage.Question
	edns     bool
	udpSize  int // the largest answer that the asker takes over UDP
}

// parseQuery reads a question. code is what to answer when it is one but is not
// forwarded; an error means that nothing is answered.
func parseQuery(b []byte) (q query, code dnsmessage.RCode, err error) {
	if len(b) > maxQuery {
		return q, 0, errNotQuery
	}
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || h.Response {
		return q, 0, errNotQuery
	}
	q.id, q.udpSize = h.ID, minUDPSize
	if q.question, err = p.Question(); err != nil {
		return q, 0, errNotQuery
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) || h.OpCode != 0 {
		return q, dnsmessage.RCodeNotImplemented, nil
	}
	if errors.Join(p.SkipAllAnswers(), p.SkipAllAuthorities()) != nil {
		return q, dnsmessage.RCodeFormatError, nil
	}
	for range 4 { // an OPT record, perhaps a cookie's; not a list
		rh, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			break
		}
		if err != nil {
			return q, dnsmessage.RCodeFormatError, nil
		}
		if rh.Type == typeOPT {
			q.edns, q.udpSize = true, min(max(int(rh.Class), minUDPSize), udpSize)
		}
		if err := p.SkipAdditional(); err != nil {
			return q, dnsmessage.RCodeFormatError, nil
		}
	}
	return q, q.refusal(), nil
}

// refusal is the code for questions that are answered here; success is none.
func (q query) refusal() dnsmessage.RCode {
	if q.question.Class != dnsmessage.ClassINET {
		return dnsmessage.RCodeRefused
	}
	// 41 is OPT, 249-255 are TKEY, TSIG, transfers, obsolete ones and ANY.
	if t := q.question.Type; t == typeOPT || t >= 249 && t <= 255 {
		return dnsmessage.RCodeRefused
	}
	if a, ok := reverseAddr(q.question.Name.String()); ok && !sandbox.PublicAddr(a) {
		return dnsmessage.RCodeNameError
	}
	return dnsmessage.RCodeSuccess
}

// reverseAddr reads the address of a name below in-addr.arpa or ip6.arpa. A name
// of fewer labels is a network, judged by its first address.
func reverseAddr(name string) (netip.Addr, bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		labels := strings.Split(s, ".")
		slices.Reverse(labels)
		var a [4]byte
		for i, l := range labels[:min(len(labels), 4)] {
			n, err := strconv.ParseUint(l, 10, 8)
			if err != nil {
				return netip.Addr{}, false
			}
			a[i] = byte(n)
		}
		return netip.AddrFrom4(a), true
	}
	if s, ok := strings.CutSuffix(name, ".ip6.arpa"); ok {
		labels := strings.Split(s, ".")
		slices.Reverse(labels)
		var a [16]byte
		for i, l := range labels[:min(len(labels), 32)] {
			n, err := strconv.ParseUint(l, 16, 4)
			if err != nil {
				return netip.Addr{}, false
			}
			a[i/2] |= byte(n) << (4 * (1 - i%2))
		}
		return netip.AddrFrom16(a), true
	}
	return netip.Addr{}, false
}

// forward writes the question anew, for a name server.
func (q query) forward(id uint16) ([]byte, error) {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, RecursionDesired: true})
	if err := errors.Join(b.StartQuestions(), b.Question(q.question), b.StartAdditionals()); err != nil {
		return nil, fmt.Errorf("write the question: %w", err)
	}
	var h dnsmessage.ResourceHeader
	if err := errors.Join(h.SetEDNS0(udpSize, dnsmessage.RCodeSuccess, false), b.OPTResource(h, dnsmessage.OPTResource{})); err != nil {
		return nil, fmt.Errorf("write the question: %w", err)
	}
	return b.Finish()
}

// empty is an answer without records.
func (q query) empty(code dnsmessage.RCode, truncated bool) ([]byte, error) {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: q.id, Response: true, RecursionDesired: true, RecursionAvailable: true, RCode: code, Truncated: truncated,
	})
	if err := errors.Join(b.StartQuestions(), b.Question(q.question)); err != nil {
		return nil, fmt.Errorf("write the answer: %w", err)
	}
	return b.Finish()
}

// checkAnswer reports whether b answers the question that was sent under id. The
// error is errMismatched when it does not; truncated says that there is more over TCP.
func (q query) checkAnswer(b []byte, id uint16) (truncated bool, err error) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || !h.Response || h.ID != id {
		return false, errMismatched
	}
	got, err := p.Question()
	if err != nil || got.Type != q.question.Type || got.Class != q.question.Class ||
		!strings.EqualFold(got.Name.String(), q.question.Name.String()) {
		return false, errMismatched
	}
	return h.Truncated, nil
}

// answer makes the asker's answer of a name server's, which checkAnswer accepted:
// the same under the asker's id, or an empty one when it holds an address that is
// not public. What can't be read to its end is an error.
func (q query) answer(b []byte) ([]byte, error) {
	var p dnsmessage.Parser
	if _, err := p.Start(b); err != nil {
		return nil, err
	}
	if err := p.SkipAllQuestions(); err != nil {
		return nil, err
	}
	for _, section := range []struct {
		header func() (dnsmessage.ResourceHeader, error)
		skip   func() error
	}{{p.AnswerHeader, p.SkipAnswer}, {p.AuthorityHeader, p.SkipAuthority}, {p.AdditionalHeader, p.SkipAdditional}} {
		for {
			h, err := section.header()
			if errors.Is(err, dnsmessage.ErrSectionDone) {
				break
			}
			if err != nil {
				return nil, err
			}
			var a netip.Addr
			switch h.Type {
			case dnsmessage.TypeA:
				r, err := p.AResource()
				if err != nil {
					return nil, err
				}
				a = netip.AddrFrom4(r.A)
			case dnsmessage.TypeAAAA:
				r, err := p.AAAAResource()
				if err != nil {
					return nil, err
				}
				a = netip.AddrFrom16(r.AAAA)
			default:
				if err := section.skip(); err != nil {
					return nil, err
				}
				continue
			}
			if !sandbox.PublicAddr(a) {
				return q.empty(dnsmessage.RCodeSuccess, false)
			}
		}
	}
	out := slices.Clone(b)
	out[0], out[1] = byte(q.id>>8), byte(q.id)
	return out, nil
}
