// SPDX-License-Identifier: LGPL-3.0-or-later

package bpf_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// The verdicts of the kernel programs are those of the wire package, in the same order.
func TestVerdictsAreThoseOfWire(t *testing.T) {
	spec, err := bpf.LoadRp()
	require.NoError(t, err)
	var enum *btf.Enum
	require.NoError(t, spec.Types.TypeByName("verdict", &enum))

	var want []string
	for _, v := range wire.Verdicts() {
		want = append(want, "VERDICT_"+strings.ToUpper(v.String()))
	}
	var got []string
	for i, v := range enum.Values {
		require.Equal(t, uint64(i), v.Value, v.Name)
		got = append(got, v.Name)
	}
	require.Equal(t, append(want, "VERDICTS"), got)
	require.Equal(t, uint32(len(want)), spec.Maps[bpf.RpMapVerdicts].MaxEntries)
}

// The kernel cuts longer names, and tools show them.
func TestNamesFitTheKernel(t *testing.T) {
	spec, err := bpf.LoadRp()
	require.NoError(t, err)
	for name := range spec.Programs {
		require.LessOrEqual(t, len(name), 15, name)
	}
	for name := range spec.Maps {
		require.LessOrEqual(t, len(name), 15, name)
	}
}

// The verifier accepts the programs with every option, and without: what an option leaves out, it does not see.
func TestXDPProgramsLoad(t *testing.T) {
	if err := features.HaveProgramType(ebpf.XDP); err != nil {
		t.Skipf("no XDP: %v", err)
	}
	limits := map[string]any{bpf.RpVarQuietNs: uint64(1e6)}
	switches := []string{bpf.RpVarCacheOn, bpf.RpVarHelloOn}
	for name, on := range map[string][]string{
		"none": nil, "cache": switches[:1], "hello": switches[1:], "all": switches,
	} {
		t.Run(name, func(t *testing.T) {
			spec, err := bpf.LoadRp()
			require.NoError(t, err)
			for _, option := range on {
				require.NoError(t, spec.Variables[option].Set(uint8(1)))
			}
			if on != nil {
				for option, value := range limits {
					require.NoError(t, spec.Variables[option].Set(value))
				}
			}
			var objects bpf.RpObjects
			err = spec.LoadAndAssign(&objects, &ebpf.CollectionOptions{
				Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
			})
			if v, ok := errors.AsType[*ebpf.VerifierError](err); ok {
				t.Fatalf("%+v", v)
			}
			require.NoError(t, err)
			defer objects.Close()
			for _, p := range []*ebpf.Program{
				objects.MdcsRpIn, objects.MdcsRpOut, objects.MdcsRpFan, objects.MdcsRpOwn, objects.MdcsRpRecirc, objects.MdcsRpLost, objects.MdcsRpFull,
			} {
				t.Logf("%v: %s", p, p.VerifierLog)
			}
		})
	}
}
