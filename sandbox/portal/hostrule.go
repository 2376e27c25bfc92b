package portal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
)

// Names of the host rule's table and chain.
const (
	ruleTable = "podspawn"
	ruleChain = "sandbox-uids"
)

// ErrNoHostRule means that the rule is not, or not exactly, in place.
var ErrNoHostRule = errors.New("the host rule for sandbox uids is missing")

// hostRule is "meta skuid 70000-98999 reject", as nft compiles it: the uid is
// brought into network byte order, so that a range compares as numbers.
func hostRule() []expr.Any {
	be := func(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: be(sandbox.MinUID), ToData: be(sandbox.MaxUID)},
		&expr.Counter{},
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED},
	}
}

// EnsureHostRule puts the rule in place: a sandbox's uid has no connection in
// the network namespace of the calling process, whatever became of PAM. A rule that is not
// exactly ours is replaced, in one transaction.
func EnsureHostRule() error {
	if err := CheckHostRule(); err == nil {
		return nil
	} else if !errors.Is(err, ErrNoHostRule) {
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := c.AddTable(&nftables.Table{Name: ruleTable, Family: nftables.TableFamilyINet})
	accept := nftables.ChainPolicyAccept
	ch := c.AddChain(&nftables.Chain{
		Name: ruleChain, Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter, Policy: &accept,
	})
	c.FlushChain(ch)
	c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: hostRule()})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("install the host rule: %w", err)
	}
	return CheckHostRule()
}

// CheckHostRule returns ErrNoHostRule unless the kernel has exactly the rule of
// EnsureHostRule, alone in its chain. It takes well below a millisecond.
func CheckHostRule() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	// The library's errors don't carry the kernel's number, so what exists is
	// listed instead of asked for.
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("list firewall chains: %w", err)
	}
	i := slices.IndexFunc(chains, func(ch *nftables.Chain) bool { return ch.Table.Name == ruleTable && ch.Name == ruleChain })
	if i < 0 || chains[i].Hooknum == nil || *chains[i].Hooknum != *nftables.ChainHookOutput {
		return ErrNoHostRule
	}
	rules, err := c.GetRules(chains[i].Table, chains[i])
	if err != nil {
		return fmt.Errorf("read the host rule: %w", err)
	}
	if len(rules) != 1 || !sameRule(rules[0].Exprs, hostRule()) {
		return ErrNoHostRule
	}
	return nil
}

// RemoveHostRule takes the table out. It is idempotent.
func RemoveHostRule() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("list firewall tables: %w", err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == ruleTable })
	if i < 0 {
		return nil
	}
	c.DelTable(tables[i])
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove the host rule: %w", err)
	}
	return nil
}

// sameRule compares rules without their counters' values and without byte order
// expressions, which the library writes but does not read back.
func sameRule(got, want []expr.Any) bool {
	want = slices.DeleteFunc(want, func(e expr.Any) bool { _, ok := e.(*expr.Byteorder); return ok })
	if len(got) != len(want) {
		return false
	}
	for i := range want {
		switch w := want[i].(type) {
		case *expr.Counter:
			if _, ok := got[i].(*expr.Counter); !ok {
				return false
			}
		case *expr.Range:
			g, ok := got[i].(*expr.Range)
			if !ok || g.Op != w.Op || g.Register != w.Register || !bytes.Equal(g.FromData, w.FromData) || !bytes.Equal(g.ToData, w.ToData) {
				return false
			}
		default:
			g, err := expr.Marshal(byte(nftables.TableFamilyINet), got[i])
			if err != nil {
				return false
			}
			m, err := expr.Marshal(byte(nftables.TableFamilyINet), w)
			if err != nil || !bytes.Equal(g, m) {
				return false
			}
		}
	}
	return true
}
