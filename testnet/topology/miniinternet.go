// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// miniInternet reads the configuration of the mini-Internet of ETH Zürich.
type miniInternet struct {
	files   fs.FS
	dir     string
	t       *Topology
	numbers map[int]string // name of the AS or IXP
	kinds   map[int]string // "AS" or "IXP"
	pairs   map[[2]int]bool
	skipped []string
}

// ImportMiniInternet reads the configuration of a mini-Internet
// (github.com/nsg-ethz/mini_internet_project): the files AS_config.txt and
// aslevel_links.txt, or external_links_config.txt of the years up to 2022, in the
// root or in config or platform/config below it. Rates and delays are with units
// as tc has them, or in kbit/s and us. Each AS becomes one border router, with an
// equal share of the nodes and a replication point. The second result says in
// words what was left out, and what is unusual.
func ImportMiniInternet(files fs.FS) (*Topology, []string, error) {
	m := &miniInternet{
		files: files, t: &Topology{Name: "mini-internet"},
		numbers: make(map[int]string), kinds: make(map[int]string), pairs: make(map[[2]int]bool),
	}
	if err := m.read(); err != nil {
		return nil, nil, fmt.Errorf("import mini-Internet: %w", err)
	}
	if err := m.t.Validate(); err != nil {
		return nil, nil, fmt.Errorf("import mini-Internet: %w", err)
	}
	return m.t, m.skipped, nil
}

func (m *miniInternet) skip(format string, args ...any) {
	m.skipped = append(m.skipped, fmt.Sprintf(format, args...))
}

func (m *miniInternet) read() error {
	const systems = "AS_config.txt"
	dirs := []string{".", "config", "platform/config"}
	i := slices.IndexFunc(dirs, func(dir string) bool { return m.exists(path.Join(dir, systems)) })
	if i < 0 {
		return fmt.Errorf("no %s in %s", systems, strings.Join(dirs, ", "))
	}
	m.dir = dirs[i]
	if err := m.each(systems, m.system); err != nil {
		return err
	}
	m.populate()
	for _, links := range []string{"aslevel_links.txt", "external_links_config.txt"} {
		if m.exists(path.Join(m.dir, links)) {
			if err := m.each(links, m.link); err != nil {
				return err
			}
			if len(m.pairs) == 0 {
				return fmt.Errorf("%s has no link between ASes: there is no internet to import", path.Join(m.dir, links))
			}
			m.finish()
			return nil
		}
	}
	return errors.New("neither aslevel_links.txt nor external_links_config.txt")
}

func (m *miniInternet) exists(name string) bool {
	info, err := fs.Stat(m.files, name)
	return err == nil && info.Mode().IsRegular()
}

// each calls f with the fields of each line that is not empty.
func (m *miniInternet) each(name string, f func(fields []string) error) error {
	text, err := fs.ReadFile(m.files, path.Join(m.dir, name))
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		if fields := strings.Fields(lines.Text()); len(fields) > 0 {
			if err := f(fields); err != nil {
				return fmt.Errorf("%s, line %d: %w", name, n, err)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// system reads a line "number AS|IXP Config|NoConfig routers links switches hosts
// links", where the last five are files.
func (m *miniInternet) system(fields []string) error {
	if len(fields) != 8 {
		return fmt.Errorf("%d fields, want 8", len(fields))
	}
	number, err := strconv.Atoi(fields[0])
	if err != nil {
		return fmt.Errorf("number %q: %w", fields[0], err)
	}
	if m.kinds[number] != "" {
		return fmt.Errorf("number %d for the second time", number)
	}
	m.kinds[number] = fields[1]
	switch fields[1] {
	case "AS":
		as := AS{Name: fmt.Sprintf("as%d", number), Number: number, RP: true}
		m.numbers[number] = as.Name
		m.t.ASes = append(m.t.ASes, as)
		inside := make([]string, 0, 5)
		for i, what := range []string{"routers", "links between them", "switches", "hosts", "links of switches"} {
			if n := m.count(fields[3+i]); n > 0 {
				inside = append(inside, fmt.Sprintf("%s (%d)", what, n))
			}
		}
		if len(inside) > 0 {
			m.skip("%s: one border router stands for %s", as.Name, strings.Join(inside, ", "))
		}
	case "IXP":
		x := IXP{Name: fmt.Sprintf("ix%d", number), Number: number, Net: ixpNet(number)}
		m.numbers[number] = x.Name
		m.t.IXPs = append(m.t.IXPs, x)
	default:
		return fmt.Errorf("%q is neither AS nor IXP", fields[1])
	}
	return nil
}

// count is the number of lines of a file that are not empty.
func (m *miniInternet) count(name string) int {
	n := 0
	if !fs.ValidPath(name) || m.each(name, func([]string) error { n++; return nil }) != nil {
		return 0 // "N/A", or a file that is not there
	}
	return n
}

// populate gives each AS the same share of the nodes. The configuration has none.
func (m *miniInternet) populate() {
	for i, a := range m.t.ASes {
		m.t.ASes[i].Share = 1 / float64(len(m.t.ASes))
		m.t.Hosts = append(m.t.Hosts, m.t.host(rpName(a.Name), RP, a, "", "53"))
	}
	const degree = 8
	m.t.Nodes = Population{Count: 2 * len(m.t.ASes), Degree: degree, Seed: 1}
}

// link reads a line "AS router role AS|IXP router role rate delay [buffer] subnet",
// where the last one are the ASes to which the IXP passes announcements on.
func (m *miniInternet) link(fields []string) error {
	if len(fields) != 9 && len(fields) != 10 {
		return fmt.Errorf("%d fields, want 9 or 10", len(fields))
	}
	a, errA := strconv.Atoi(fields[0])
	b, errB := strconv.Atoi(fields[3])
	if err := cmp.Or(errA, errB); err != nil {
		return err
	}
	if m.kinds[a] != "AS" || m.kinds[b] == "" {
		return fmt.Errorf("link between %d and %d, which AS_config.txt does not have as an AS and as an AS or IXP", a, b)
	}
	pair := [2]int{min(a, b), max(a, b)}
	if m.pairs[pair] {
		m.skip("%s-%s: a second link of the two, between %s and %s", m.numbers[a], m.numbers[b], fields[1], fields[4])
		return nil
	}
	m.pairs[pair] = true
	line, err := m.line(fields[6 : len(fields)-1])
	if err != nil {
		return err
	}
	if m.kinds[b] == "IXP" {
		return m.member(a, b, line, fields[len(fields)-1])
	}
	l := Link{A: m.numbers[a], B: m.numbers[b], Relation: Transit, Net: linkNet(len(m.t.Links) + 1), Line: line}
	switch strings.ToLower(fields[2] + " " + fields[5]) {
	case "provider customer":
	case "customer provider":
		l.A, l.B = l.B, l.A
	case "peer peer":
		l.Relation = Peer
	default:
		return fmt.Errorf("roles %s and %s do not match", fields[2], fields[5])
	}
	m.t.Links = append(m.t.Links, l)
	return nil
}

// line reads "rate delay [buffer]".
func (m *miniInternet) line(fields []string) (Line, error) {
	var (
		rate bitRate
		line Line
	)
	for i, field := range fields {
		first, _, several := strings.Cut(strings.ToLower(field), ",")
		if several {
			m.skip("%q: only the first of several values", field)
		}
		unit := "us"
		if i == 0 {
			unit = "kbit"
		}
		if _, err := strconv.ParseFloat(first, 64); err == nil {
			first += unit
		}
		var (
			d   time.Duration
			err error
		)
		if i == 0 {
			err = rate.UnmarshalText([]byte(first))
		} else {
			d, err = time.ParseDuration(first)
		}
		if err != nil {
			return Line{}, err
		}
		switch i {
		case 0:
			line.Rate = uint64(rate)
		case 1:
			line.Delay = d
		case 2:
			line.Queue = d
		}
	}
	return line, nil
}

// member adds an AS to an IXP.
func (m *miniInternet) member(as, ixp int, line Line, to string) error {
	member := Member{AS: m.numbers[as], Addr: ixpAddr(ixp, as), Line: line}
	if to != "N/A" {
		member.ExportTo = []int{}
		for field := range strings.SplitSeq(to, ",") {
			n, err := strconv.Atoi(field)
			if err != nil {
				return fmt.Errorf("AS %q of the announcements: %w", field, err)
			}
			if n != as {
				member.ExportTo = append(member.ExportTo, n)
			}
		}
	}
	i := slices.IndexFunc(m.t.IXPs, func(x IXP) bool { return x.Number == ixp })
	m.t.IXPs[i].Members = append(m.t.IXPs[i].Members, member)
	return nil
}

// finish reads what only the whole can tell.
func (m *miniInternet) finish() {
	slow := false
	for _, x := range m.t.IXPs {
		for i, member := range x.Members {
			slow = slow || member.Line.Rate < 10e6
			var strangers []string
			x.Members[i].ExportTo = slices.DeleteFunc(member.ExportTo, func(n int) bool {
				if slices.ContainsFunc(x.Members, func(other Member) bool { return other.AS == m.numbers[n] }) {
					return false
				}
				strangers = append(strangers, strconv.Itoa(n))
				return true
			})
			if strangers != nil {
				m.skip("%s: %s announces to what is no member: AS %s", x.Name, member.AS, strings.Join(strangers, ", "))
			}
		}
	}
	for _, l := range m.t.Links {
		slow = slow || l.Line.Rate < 10e6
	}
	if slow {
		m.skip("rates are as written: some are below 10 Mbit/s, which is little for Ethereum nodes")
	}
	for _, other := range []struct{ file, what string }{
		{"hijacks.txt", "hijacked prefixes"},
		{"l2_tunnel.txt", "tunnels between switches"},
		{"variables.sh", "settings of the platform"},
		{"subnet_config.sh", "IPv4 addresses: those here are IPv6 and follow from the numbers"},
	} {
		if m.exists(path.Join(m.dir, other.file)) {
			m.skip("%s: %s", other.file, other.what)
		}
	}
}
