// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/pindir"
)

// Whatever became of the pins of a killed process, the next one goes on with them or
// begins anew. It never fails, and never finds the device taken.
func TestXDPDamagedPins(t *testing.T) {
	c, spec := newOrphanCrowd(t, 1, 3, func(int) int { return 0 })
	kill, err := c.lab.startChild(spec, false)
	require.NoError(t, err)
	dirs, err := filepath.Glob(filepath.Join(spec.Pin, "*", "v*"))
	require.NoError(t, err)
	require.Len(t, dirs, 1)
	damages := make(map[string]func(dir string))
	pair := func(dir string) string { // another interface with each start
		all, err := filepath.Glob(filepath.Join(dir, "link_[0-9]*"))
		require.NoError(t, err)
		i := slices.IndexFunc(all, func(path string) bool { return filepath.Base(path) != pindir.LinkName(100) })
		return filepath.Base(all[i])
	}
	for _, name := range []string{
		pindir.LinkName(100), "pair", pindir.LostLink, pindir.FullLink, bpf.RpMapLives, bpf.RpMapSessions, bpf.RpMapNexts, bpf.RpMapTargets, bpf.RpMapFanCpus, bpf.RpMapTotals,
	} {
		remove := func(dir string) string {
			path := filepath.Join(dir, name)
			if name == "pair" {
				path = filepath.Join(dir, pair(dir))
			}
			require.NoError(t, os.Remove(path))
			return path
		}
		damages["without "+name] = func(dir string) { remove(dir) }
		damages["foreign "+name] = func(dir string) {
			m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 24, MaxEntries: 3})
			require.NoError(t, err)
			defer m.Close()
			require.NoError(t, m.Pin(remove(dir)))
		}
	}
	damages["directory among them"] = func(dir string) { require.NoError(t, os.Mkdir(filepath.Join(dir, "link_7"), 0o700)) }
	damages["half filled"] = func(dir string) { require.NoError(t, os.Rename(dir, dir+"_new")) }
	damages["older layout"] = func(dir string) { require.NoError(t, os.Rename(dir, filepath.Join(filepath.Dir(dir), "v1_00000000"))) }
	damages["nothing"] = func(string) {}
	watch := map[string]bool{"without " + pindir.LostLink: true, "without " + pindir.FullLink: true, "nothing": true}
	adopted := 0
	for name, damage := range damages {
		kill()
		damage(dirs[0])
		var log bytes.Buffer
		e, err := c.adoptHere(spec, &log)
		require.NoError(t, err, name)
		if e.Adopted() != nil {
			adopted++
		} else {
			require.False(t, watch[name], name)
		}
		require.ElementsMatch(t, []string{"rp0", pindir.EndpointName(spec.Config.Addr) + "b"}, c.programs(), name)
		require.NoError(t, e.Close())
		c.nothingLeft(spec.Pin)
		kill, err = c.lab.startChild(spec, false)
		require.NoError(t, err, name)
	}
	require.GreaterOrEqual(t, adopted, len(watch))
}

// Another node key or chain begins anew with other maps, another port or address takes
// the device from a process that is dead, and from one that lives it does not.
func TestXDPOthersPins(t *testing.T) {
	c, spec := newOrphanCrowd(t, 1, 3, func(int) int { return 0 })
	kill, err := c.lab.startChild(spec, false)
	require.NoError(t, err)
	kill()
	var log bytes.Buffer
	other := spec
	other.Config.Owner, other.Config.Incarnation = [16]byte{1}, 77
	e, err := c.adoptHere(other, &log)
	require.NoError(t, err)
	require.Nil(t, e.Adopted())
	require.Contains(t, log.String(), "it is of another node key or chain")
	require.Equal(t, uint32(77), e.objects.Memory.Lives.At(0).Incarnation)
	require.NoError(t, e.Close())
	c.nothingLeft(spec.Pin)

	// As does the same one, when it may not be the incarnation that was left.
	kill, err = c.lab.startChild(spec, false)
	require.NoError(t, err)
	kill()
	var asked []ids.Incarnation
	other = spec
	other.Config.Incarnation = 78
	other.Config.MayBe = func(incarnation ids.Incarnation) bool {
		asked = append(asked, incarnation)
		return incarnation == 78
	}
	e, err = c.adoptHere(other, &log)
	require.NoError(t, err)
	require.Nil(t, e.Adopted())
	require.Equal(t, []ids.Incarnation{spec.Config.Incarnation}, asked)
	require.Contains(t, log.String(), "is none that this node may have")
	require.Equal(t, uint32(78), e.objects.Memory.Lives.At(0).Incarnation)
	require.Empty(t, e.Stats().Sessions)
	require.NoError(t, e.Close())
	c.nothingLeft(spec.Pin)

	second := c.lab.rpAddr(0).Next().Next()
	c.lab.addAddr(c.lab.rp, "rp0", second, 128)
	for name, addr := range map[string]netip.AddrPort{
		"port":    netip.AddrPortFrom(c.lab.rpAddr(0), 30501),
		"address": netip.AddrPortFrom(second, 30500),
	} {
		t.Run(name, func(t *testing.T) {
			kill, err := c.lab.startChild(spec, false)
			require.NoError(t, err)
			moved := spec
			moved.Config.Addr = addr
			_, err = c.adoptHere(moved, &log)
			require.ErrorContains(t, err, "another rpd runs at "+spec.Config.Addr.String()+", whose pins are "+spec.Pin)
			require.NotContains(t, err.Error(), "\n")
			dir := c.left(spec.Pin, spec.Config.Addr)
			require.True(t, strings.HasPrefix(dir, spec.Pin), dir)
			require.Empty(t, c.left(spec.Pin, addr))
			kill()
			e, err := c.adoptHere(moved, &log)
			require.NoError(t, err)
			require.ElementsMatch(t, []string{"rp0", pindir.EndpointName(addr) + "b"}, c.programs())
			require.Empty(t, c.left(spec.Pin, spec.Config.Addr))
			require.NoError(t, e.Close())
			c.nothingLeft(spec.Pin)
		})
	}

	// Pins that nobody finds are named.
	kill, err = c.lab.startChild(spec, false)
	require.NoError(t, err)
	defer kill()
	moved := spec
	moved.Config.Addr, moved.Pin = netip.AddrPortFrom(second, 30500), mountBPF(t)
	_, err = c.adoptHere(moved, &log)
	require.ErrorContains(t, err, "the datapath of an rpd has it, and is not pinned below")
}

// left is Left in the RP's namespace.
func (c *crowd) left(pin string, addr netip.AddrPort) (dir string) {
	c.lab.in(c.lab.rp, func() {
		var err error
		dir, err = Left(pin, addr)
		require.NoError(c.lab.t, err)
	})
	return dir
}
