-- SPDX-License-Identifier: LGPL-3.0-or-later
--
-- Wireshark dissector of mDCS datagrams (SPEC section 4). Use:
--   wireshark -X lua_script:mdcs.lua        tshark -X lua_script:mdcs.lua -Y mdcs
-- UDP ports 30400 (geth) and 30501 (rpd) are taken; for others set the
-- preference "UDP ports", or choose "Decode As".

local mdcs = Proto("mdcs", "mDCS multicast diffusion")

local types = { [1] = "DATA", [2] = "ECHO", [3] = "HEARTBEAT", [4] = "PROBE", [5] = "LINK_HELLO" }
local HEADER, MAX = 64, 1232

local f = {
	version = ProtoField.uint8("mdcs.version", "Version", base.DEC, nil, 0xf0),
	type = ProtoField.uint8("mdcs.type", "Type", base.DEC, types, 0x0f),
	flags = ProtoField.uint8("mdcs.flags", "Flags", base.HEX),
	republished = ProtoField.bool("mdcs.flags.republished", "Republished", 8, nil, 0x01),
	receipt = ProtoField.bool("mdcs.flags.receipt", "Receipt wanted", 8, nil, 0x02),
	hop_limit = ProtoField.uint8("mdcs.hop_limit", "Hop limit"),
	epoch = ProtoField.uint8("mdcs.epoch", "Group key epoch"),
	session = ProtoField.uint32("mdcs.session", "Session", base.HEX),
	group = ProtoField.uint32("mdcs.group", "Group", base.HEX),
	ingress = ProtoField.uint32("mdcs.ingress", "Ingress RP", base.HEX),
	sequence = ProtoField.uint64("mdcs.seq", "Sequence"),
	handle = ProtoField.uint32("mdcs.handle", "Publisher handle", base.HEX),
	esi = ProtoField.uint16("mdcs.esi", "ESI"),
	k = ProtoField.uint16("mdcs.k", "Source symbols (K)"),
	n = ProtoField.uint16("mdcs.n", "Symbols (N)"),
	payload_len = ProtoField.uint16("mdcs.payload_len", "Payload length"),
	object_len = ProtoField.uint32("mdcs.object_len", "Object length"),
	object_id = ProtoField.bytes("mdcs.object_id", "Object id"),
	payload_tag = ProtoField.bytes("mdcs.payload_tag", "Payload tag"),
	hop_tag = ProtoField.bytes("mdcs.hop_tag", "Hop tag"),
	payload = ProtoField.bytes("mdcs.payload", "Payload"),
	nonce = ProtoField.bytes("mdcs.nonce", "Nonce"),
	hello = ProtoField.bytes("mdcs.hello", "Hello"),
}
mdcs.fields = {}
for _, field in pairs(f) do
	table.insert(mdcs.fields, field)
end

local malformed = ProtoExpert.new("mdcs.malformed", "Malformed datagram", expert.group.MALFORMED, expert.severity.ERROR)
mdcs.experts = { malformed }
mdcs.prefs.ports = Pref.range("UDP ports", "30400,30501", "UDP ports of mDCS datagrams", 65535)

function mdcs.dissector(buf, pinfo, tree)
	local len = buf:len()
	if len < HEADER or len > MAX or buf(0, 1):bitfield(0, 4) ~= 1 then
		return 0
	end
	pinfo.cols.protocol = "mDCS"
	local t = tree:add(mdcs, buf())
	t:add(f.version, buf(0, 1))
	t:add(f.type, buf(0, 1))
	local flags = t:add(f.flags, buf(1, 1))
	flags:add(f.republished, buf(1, 1))
	flags:add(f.receipt, buf(1, 1))
	t:add(f.hop_limit, buf(2, 1))
	t:add(f.epoch, buf(3, 1))
	t:add(f.session, buf(4, 4))
	t:add(f.group, buf(8, 4))
	t:add(f.ingress, buf(12, 4))
	t:add(f.sequence, buf(16, 8))
	t:add(f.handle, buf(24, 4))
	local kind = buf(0, 1):bitfield(4, 4)
	if kind == 5 then
		t:add(f.hello, buf(28, 16))
	else
		t:add(f.esi, buf(28, 2))
		t:add(f.k, buf(30, 2))
		t:add(f.n, buf(32, 2))
		t:add(f.payload_len, buf(34, 2))
		t:add(f.object_len, buf(36, 4))
		t:add(f.object_id, buf(40, 8))
	end
	t:add(f.payload_tag, buf(48, 8))
	t:add(f.hop_tag, buf(56, 8))

	local rest = len - HEADER
	if kind == 1 then
		if rest ~= buf(34, 2):uint() or rest == 0 then
			t:add_proto_expert_info(malformed, "payload length and datagram disagree")
		elseif buf(30, 2):uint() == 0 or buf(30, 2):uint() > buf(32, 2):uint() or buf(28, 2):uint() >= buf(32, 2):uint() then
			t:add_proto_expert_info(malformed, "ESI, K and N contradict each other")
		end
		if rest > 0 then
			t:add(f.payload, buf(HEADER))
		end
	elseif kind == 4 and rest >= 16 then
		t:add(f.nonce, buf(HEADER, 16))
	elseif types[kind] == nil or rest > 0 then
		t:add_proto_expert_info(malformed)
	end
	pinfo.cols.info = string.format("%s seq=%s object=%s %d/%d", types[kind] or "type " .. kind,
		tostring(buf(16, 8):uint64()), tostring(buf(40, 8):bytes()):lower(), buf(28, 2):uint(), buf(30, 2):uint())
	return len
end

local ports = ""
function mdcs.init()
	local udp = DissectorTable.get("udp.port")
	if ports ~= mdcs.prefs.ports then
		if ports ~= "" then
			udp:remove(ports, mdcs)
		end
		ports = mdcs.prefs.ports
		udp:add(ports, mdcs)
	end
end
