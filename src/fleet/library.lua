#!lua name=gd1
-- The functions that a fleet's partitions and lanes are written with. What they keep and what they
-- say is in docs/FORMATS.md, why they are so in src/fleet/mod.rs.
--
-- A call writes all that it changes at its end, after everything that may go wrong. So a call that
-- is refused, or that fails, has changed nothing.

local HOUR_MS = 3600000
local USERS_MAX = 200
local LIVES_MAX = 1024
-- A message that is longer is kept in the ring as its first 20 bytes: who finds that reads anew.
local RING_BYTES_MAX = 1024
local RING_MESSAGES = 32
-- Of whoever was logged out or erased: what was done 1, when 6, tag 6.
local END_BYTES, ENDS_MAX = 13, 256

local META, FENCES, LIFE, RING, NEWEST = '\0m', '\0F', '\0L', '\0r', '\0t'
-- Kinds of a claim, as bits. The first two prove a life, an open stream does not. The last is no
-- kind: nobody is at the devices that are heard there.
local BEAT, PROOF, STREAMS, KINDS, UNATTENDED = 1, 3, 6, 8, 8
-- Bits of flags. What a user says of itself is below the fourth, which is a record's alone.
local INVISIBLE, SAID, MORE, AWAY = 4, 8, 8, 16
-- Flags of a claim whose node does not know what its user says of itself.
local UNKNOWN = 3
local CLAIM, WITHDRAW, GOODBYE, LOG_OUT, FLAGS, ERASE = 43, 45, 103, 33, 61, 120 -- + - g ! = x
local IS_OP = { [43] = true, [45] = true, [103] = true, [33] = true, [61] = true, [120] = true }
local REAP = 114 -- r
-- A string of each byte, made by the first call: a library has no `string` while it is loaded.
local BYTES = {}

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function refuse(code, detail)
  return redis.error_reply(code .. ' ' .. detail)
end

-- A field of so many bytes; nil if it is none of ours, whoever has put it there.
local function sound(value, bytes)
  return value and #value == bytes and value or nil
end

-- The same of a user's field. So what another program has damaged is as if it were not there, and
-- whoever has the user says so anew.
local function sound_user(value)
  if not value or #value < 7 or string.byte(value, 7) > 22 or string.byte(value, 7) % 16 > 6 or
    string.byte(value, 7) % 4 == 3 then
    return nil
  end
  local at = 8
  while at <= #value do
    local kind = string.byte(value, at + 4)
    if not kind or kind > 15 or kind % KINDS == 0 then
      return nil
    end
    at = at + (kind % 2 == BEAT and 11 or 5)
  end
  return at == #value + 1 and value or nil
end

local function meta_of(value, birth)
  if not value then
    return birth, 0, 0, 0
  end
  return string.sub(value, 1, 8), struct.unpack('>I6I6I6', value, 9)
end

-- Whether a field says that its user is here: one without claims keeps flags of who is not.
local function is_here(value)
  return value and #value > 7
end

-- The status that flags show: away is also who says that it is online while nobody is at any of
-- its devices. Of who is invisible nothing shows.
local function shown(flags)
  if flags % SAID >= INVISIBLE then
    return -1
  end
  return flags == AWAY and 1 or flags % 4
end

local function life_of(value)
  if not sound(value, 11) then
    return nil
  end
  local state, k, count = struct.unpack('>c1I6I4', value)
  return { state = state, k = k, count = count }
end

-- The claims of a user's field, and which of them is that life's.
local function claims_of(value, life)
  local claims, mine, at = {}, nil, 8
  while at <= #value do
    local claim = { life = string.sub(value, at, at + 3), kind = string.byte(value, at + 4) }
    at = at + 5
    if claim.kind % 2 == BEAT then
      claim.sent = struct.unpack('>I6', value, at)
      at = at + 6
    end
    claims[#claims + 1] = claim
    if claim.life == life then
      mine = #claims
    end
  end
  return claims, mine
end

-- Whether that life's claim is the only one, and proves no life without those kinds.
local function is_only(value, life, kind)
  local had = string.byte(value, 12)
  return string.sub(value, 8, 11) == life and #value == (had % 2 == BEAT and 18 or 12) and
    bit.band(had - bit.band(had, kind), PROOF) == 0
end

local function field_of(head, claims)
  local parts = { head }
  for _, claim in ipairs(claims) do
    if claim.kind % 2 == BEAT then
      parts[#parts + 1] = claim.life .. struct.pack('>BI6', claim.kind, claim.sent)
    else
      parts[#parts + 1] = claim.life .. string.char(claim.kind)
    end
  end
  return table.concat(parts)
end

-- Whether one of the claims proves a life.
local function is_proved(claims)
  for _, claim in ipairs(claims) do
    if bit.band(claim.kind, PROOF) ~= 0 then
      return true
    end
  end
  return false
end

-- Whether nobody is at any of a user's devices: each claim that proves a life says so.
local function is_unattended(claims)
  local all = false
  for _, claim in ipairs(claims) do
    if bit.band(claim.kind, PROOF) ~= 0 then
      if claim.kind < UNATTENDED then
        return false
      end
      all = true
    end
  end
  return all
end

-- What keeps a user here against a goodbye that was sent then: a stream, or a later beat.
local function blocked_by(claims, sent)
  local outcome
  for _, claim in ipairs(claims) do
    if bit.band(claim.kind, STREAMS) ~= 0 then
      return 's'
    elseif claim.sent > sent then
      outcome = 'l'
    end
  end
  return outcome
end

-- Why the arguments of a vouch are none. Nil: they are in order.
local function fault_of(keys, args)
  if #keys < 1 or #keys > 2 or #args < 2 or #args[1] ~= 25 then
    return 'gd1_vouch takes one key or two, a head of 25 bytes, operations, users'
  elseif #args - 2 > USERS_MAX then
    return 'more than 200 users'
  elseif #args[2] ~= 15 * (#args - 2) then
    return 'an operation of 15 bytes for each user'
  elseif not string.find(args[1], '^....[ver]') then
    return 'the mode is v, e or r'
  end
  local byte, ops, seen = string.byte, args[2], {}
  local is_reap = byte(args[1], 5) == REAP
  for i = 3, #args do
    local user = args[i]
    local op, flags, kind = byte(ops, 15 * i - 44, 15 * i - 42)
    if #user > 128 or (byte(user) or 0) == 0 or seen[user] then
      return 'a user twice, or one that is none'
    elseif not IS_OP[op] then
      return 'the operation is one of + - g ! = x'
    elseif is_reap and op ~= WITHDRAW then
      return 'a reaper only withdraws'
    elseif kind > 15 or (op == CLAIM and kind % KINDS == 0) or flags > 7 or
      (flags % 4 == 3 and (op ~= CLAIM or flags ~= UNKNOWN)) then
      return 'flags or a kind that there is not'
    elseif op == FLAGS and (kind == 0 or kind > 3) then
      return 'flags of which nothing is said'
    end
    seen[user] = true
  end
end

-- Keeps for an hour who was logged out or erased: a node that misses the message reads it there.
-- What is none of it, whoever has put it there, is dropped.
local function note_ends(key, ends, now, since)
  local had, kept = redis.pcall('GET', key), {}
  if type(had) == 'string' then
    local whole = math.floor(#had / END_BYTES)
    for number = math.max(0, whole - ENDS_MAX), whole - 1 do
      local at = 1 + END_BYTES * number
      local what, ended = struct.unpack('>BI6', had, at)
      -- None is later than the message that tells the next.
      if (what == LOG_OUT or what == ERASE) and now - ended <= HOUR_MS and ended <= since then
        kept[#kept + 1] = string.sub(had, at, at + END_BYTES - 1)
      end
    end
  end
  for _, ended in ipairs(ends) do
    kept[#kept + 1] = ended
  end
  local from = math.max(1, #kept - ENDS_MAX + 1)
  local value = table.concat(kept, '', from)
  redis.call('SET', key, value, 'PX', string.format('%.0f', HOUR_MS))
end

-- gd1_vouch HOT [ENDS]; HEAD OPS USER..: what one life claims, withdraws and tells of users.
local function vouch(keys, args)
  local fault = fault_of(keys, args)
  if fault then
    return refuse('GDARGS', fault)
  end
  if not BYTES[0] then
    for number = 0, 255 do
      BYTES[number] = string.char(number)
    end
  end
  local hot, head, ops = keys[1], args[1], args[2]
  local life, mode, birth = string.sub(head, 1, 4), string.sub(head, 5, 5), string.sub(head, 6, 13)
  local k, not_after = struct.unpack('>I6I6', head, 14)
  local now = now_ms()
  if now > not_after then
    return refuse('GDLATE', string.format('%.0f', now))
  end

  local fields = { META, LIFE .. life }
  for i = 3, #args do
    fields[i] = args[i]
  end
  local had = redis.call('HMGET', hot, unpack(fields))
  had[1] = sound(had[1], 26)
  local own = life_of(had[2])
  if mode == 'r' then
    if not own or own.state ~= 'F' then
      return refuse('GDLIFE', 'a reaper withdraws for a fenced life only')
    end
  elseif own and own.state == 'F' then
    return refuse('GDFENCED', 'choose a new life')
  elseif own and k <= own.k then
    return 'd' .. struct.pack('>I6I4', own.k, own.count)
  elseif mode == 'v' and not own then
    return refuse('GDLIFE', 'not enrolled in this partition')
  elseif mode == 'v' and k > own.k + 1 then
    return refuse('GDGAP', string.format('%.0f', own.k))
  else
    own = { state = 'A', k = k, count = own and own.count or 0 }
  end

  local seq, last_since, last_left
  birth, seq, last_since, last_left = meta_of(had[1], birth)
  local since = math.max(now, last_since + 1)
  local lives, sets, gone, events, outcomes = { [life] = own }, {}, {}, {}, {}
  local ends = {}
  local erases = false

  local function count(of, by)
    local found = lives[of]
    if found == nil then
      local value = redis.call('HGET', hot, LIFE .. of)
      found = life_of(value) or false
      lives[of] = found
    end
    if found then
      found.count = math.max(found.count + by, 0)
    end
  end

  local function set(user, value)
    sets[#sets + 1] = user
    sets[#sets + 1] = value
  end

  local function tell(kind, flags, user, times)
    events[#events + 1] = kind .. BYTES[flags] .. times .. BYTES[#user] .. user
  end

  local byte, sub, band = string.byte, string.sub, bit.band
  local since_bytes = struct.pack('>I6', since)

  -- Streams of a user end everywhere, whatever is claimed.
  local function note_end(at)
    ends[#ends + 1] = sub(ops, at, at) .. since_bytes .. sub(ops, at + 3, at + 8)
  end

  -- Nobody claims a user any more. What it says of itself stays, unless it says nothing. Of who is
  -- invisible nobody else may be told.
  local function leave(user, value)
    local flags = byte(value, 7) % SAID
    if flags == 0 then
      gone[#gone + 1] = user
    else
      set(user, since_bytes .. BYTES[flags])
    end
    return flags >= INVISIBLE and 'p' or 'e'
  end

  local function release(claims)
    last_left = since
    for _, claim in ipairs(claims) do
      count(claim.life, -1)
    end
  end

  -- A user is here as these claims say. Since when is `at`, and now if it shows something else.
  local function put(user, value, flags, at, claims)
    local had = byte(value, 7)
    flags = flags % SAID + (is_unattended(claims) and AWAY or 0)
    local changes = flags % SAID ~= had % SAID
    if shown(flags) ~= shown(had) and at == sub(value, 1, 6) then
      at = since_bytes
    end
    set(user, field_of(at .. BYTES[flags], claims))
    if not changes and at == sub(value, 1, 6) then
      return '.'
    end
    tell('=', flags, user, at)
    -- To everybody else whoever hides has gone.
    return had % SAID < INVISIBLE and flags % SAID >= INVISIBLE and 'e' or 'u'
  end

  for i = 3, #args do
    local user, value, outcome, at = args[i], sound_user(had[i]), '.', 15 * i - 44
    local op, flags, kind = byte(ops, at, at + 2)

    if op == CLAIM and not is_here(value) then
      if band(kind, PROOF) ~= 0 then
        -- Since when its node knows it to be here, with these flags: what was said is lost then.
        local known = struct.unpack('>I6', ops, at + 9)
        local kept, is_known = value and struct.unpack('>I6', value) or 0, known > 0
        -- If nobody has gone since then, neither has this user.
        is_known = is_known and known > math.max(kept, last_left) and known <= since
        if not is_known or flags == UNKNOWN then
          -- Where nothing is kept, for it was lost, whoever hides by what its node knows does so.
          local hides = flags ~= UNKNOWN and flags >= INVISIBLE and flags or 0
          flags = value and byte(value, 7) or hides
        end
        flags = flags + (kind >= UNATTENDED and AWAY or 0)
        local came = is_known and sub(ops, at + 9, at + 14) or since_bytes
        -- Its kind, and behind that when its beat was sent, stand in the call as they are kept.
        local claim = sub(ops, at + 2, kind % 2 == BEAT and at + 8 or at + 2)
        set(user, came .. BYTES[flags] .. life .. claim)
        own.count = own.count + 1
        if flags % SAID >= INVISIBLE then
          -- Whoever is invisible never arrives: what nodes are told is private.
          tell('=', flags, user, came)
        elseif is_known then
          tell('+', flags + MORE, user, came)
        else
          tell('+', flags, user, '')
        end
        outcome = 'e'
      else
        outcome = 'n'
      end
    elseif op == CLAIM then
      local claims, mine = claims_of(value, life)
      local sent, known = struct.unpack('>I6I6', ops, at + 3)
      if mine then
        local claim = claims[mine]
        if kind % 2 == BEAT then
          claim.sent = math.max(claim.sent or 0, sent)
        end
        claim.kind = bit.bor(claim.kind % KINDS, kind)
      else
        claims[#claims + 1] = { life = life, kind = kind, sent = sent }
        own.count = own.count + 1
      end
      local came = sub(value, 1, 6)
      if known > struct.unpack('>I6', value) and known <= since then
        -- The latest that any node knows counts: what was said since is lost.
        came = sub(ops, at + 9, at + 14)
        flags = flags == UNKNOWN and byte(value, 7) or flags
      else
        flags = byte(value, 7)
      end
      outcome = put(user, value, flags, came, claims)
    elseif (op == WITHDRAW or op == GOODBYE) and not is_here(value) then
      outcome = 'n'
    elseif op == WITHDRAW and is_only(value, life, kind) then
      -- As most withdrawals are: of the only claim.
      own.count = own.count - 1
      last_left = since
      outcome = leave(user, value)
      tell('-', byte(value, 7) % SAID, user, sub(ops, at + 9, at + 14))
    elseif op == WITHDRAW or op == GOODBYE then
      local claims, mine = claims_of(value, life)
      local changed, leaves, sent = false, false, nil
      if mine then
        local claim = claims[mine]
        local left = claim.kind - band(claim.kind, kind % KINDS)
        changed = left ~= claim.kind
        claim.kind = left
        if left % KINDS == 0 then
          table.remove(claims, mine)
          own.count = own.count - 1
        end
        leaves = changed and not is_proved(claims)
      end
      if op == GOODBYE then
        sent = struct.unpack('>I6', ops, at + 3)
        local block = not leaves and blocked_by(claims, sent)
        outcome = block or outcome
        leaves = not block
      end
      if leaves then
        release(claims)
        outcome = leave(user, value)
        local times = sub(ops, at + 9, at + 14)
        if sent then
          tell('-', byte(value, 7) % SAID + MORE, user, times .. sub(ops, at + 3, at + 8))
        else
          tell('-', byte(value, 7) % SAID, user, times)
        end
      elseif changed then
        local put_as = put(user, value, byte(value, 7), sub(value, 1, 6), claims)
        outcome = outcome == '.' and put_as or outcome
      end
    elseif op == FLAGS then
      local had_flags = value and byte(value, 7) % SAID or 0
      local status = (kind % 2 == 1 and flags or had_flags) % 4
      local hides = (kind >= 2 and flags or had_flags) >= INVISIBLE
      flags = status + (hides and INVISIBLE or 0)
      if is_here(value) then
        local claims = claims_of(value, life)
        outcome = put(user, value, flags, sub(value, 1, 6), claims)
      else
        outcome = 'n'
        if flags ~= had_flags then
          -- They count when it comes.
          if flags == 0 then
            gone[#gone + 1] = user
          else
            set(user, since_bytes .. BYTES[flags])
          end
          tell('=', flags + MORE, user, '')
        end
      end
    elseif op == LOG_OUT and is_here(value) then
      note_end(at)
      release((claims_of(value, life)))
      outcome = leave(user, value)
      tell('!', byte(value, 7) % SAID, user, sub(ops, at + 9, at + 14))
    elseif op == LOG_OUT then
      -- Its streams may be anywhere; and nothing else changes.
      note_end(at)
      tell('!', (value and byte(value, 7) or 0) + MORE, user, '')
      outcome = 'n'
    elseif kind == 0 or not is_here(value) then
      -- Told of somebody who is not here too: streams, buckets and names may be anywhere. With a
      -- kind it is for who is not here alone.
      if is_here(value) then
        release((claims_of(value, life)))
      end
      if kind == 0 then
        note_end(at)
      end
      gone[#gone + 1] = user
      tell('x', 0, user, '')
      erases = true
      outcome = 'e'
    end
    outcomes[i - 2] = outcome
  end

  if #ends > 0 and keys[2] then
    note_ends(keys[2], ends, now, since)
  end
  if #events > 0 then
    local message = birth .. struct.pack('>I6I6', seq, since) .. table.concat(events)
    seq, last_since = seq + 1, since
    redis.call('SPUBLISH', hot, message)
    if erases or #message > RING_BYTES_MAX then
      message = string.sub(message, 1, 20)
    end
    set(RING .. string.char(seq % RING_MESSAGES), message)
  end
  if erases then
    -- Older messages name who is erased.
    for at = 0, RING_MESSAGES - 1 do
      gone[#gone + 1] = RING .. string.char(at)
    end
  end
  if #events > 0 or not had[1] then
    set(META, birth .. struct.pack('>I6I6I6', seq, last_since, last_left))
  end
  for of, found in pairs(lives) do
    if found then
      set(LIFE .. of, struct.pack('>c1I6I4', found.state, found.k, found.count))
    end
  end
  if #gone > 0 then
    redis.call('HDEL', hot, unpack(gone))
  end
  redis.call('HSET', hot, unpack(sets))
  return 'o' .. birth .. struct.pack('>I6I6I4', seq, last_since, own.count) ..
    table.concat(outcomes)
end

-- gd1_fence HOT; HEAD: nothing of that life is taken in this partition from here on.
local function fence(keys, args)
  local head = args[1]
  if #keys ~= 1 or #args ~= 1 or #head ~= 18 then
    return refuse('GDARGS', 'gd1_fence takes one key and a head of 18 bytes')
  end
  local hot, life, birth = keys[1], string.sub(head, 1, 4), string.sub(head, 5, 12)
  local not_after, now = struct.unpack('>I6', head, 13), now_ms()
  if now > not_after then
    return refuse('GDLATE', string.format('%.0f', now))
  end
  local had = redis.call('HMGET', hot, META, LIFE .. life, FENCES)
  local own = life_of(had[2]) or { state = 'A', k = 0, count = 0 }
  local seq, last_since, last_left
  birth, seq, last_since, last_left = meta_of(sound(had[1], 26), birth)
  if own.state == 'A' then
    -- One of more than an hour ago whose users are all gone is needed no more: what is older than
    -- that is late.
    local kept, dropped = {}, {}
    for at = 1, #(had[3] or ''), 10 do
      local of, fenced_at = struct.unpack('>c4I6', had[3], at)
      local is_old = now - fenced_at > HOUR_MS
      local found = is_old and life_of(redis.call('HGET', hot, LIFE .. of))
      if is_old and (not found or found.count == 0) then
        dropped[#dropped + 1] = LIFE .. of
      else
        kept[#kept + 1] = string.sub(had[3], at, at + 9)
      end
    end
    if #kept >= LIVES_MAX then
      return refuse('GDFULL', 'more than 1024 lives were fenced within an hour')
    end
    kept[#kept + 1] = life .. struct.pack('>I6', now)
    if #dropped > 0 then
      redis.call('HDEL', hot, unpack(dropped))
    end
    redis.call('HSET', hot, META, birth .. struct.pack('>I6I6I6', seq, last_since, last_left),
      LIFE .. life, struct.pack('>c1I6I4', 'F', own.k, own.count),
      FENCES, table.concat(kept))
  end
  return 'f' .. birth .. struct.pack('>I6I4', seq, own.count)
end

-- gd1_renew LANE; HEAD INFO: a life is alive; answers when all were last.
local function renew(keys, args)
  local head, info = args[1], args[2]
  if #keys ~= 1 or #args ~= 2 or #head ~= 26 or #info > 512 then
    return refuse('GDARGS', 'gd1_renew takes one key, a head of 26 bytes, at most 512 of info')
  end
  local lane, life, instance = keys[1], string.sub(head, 1, 4), string.sub(head, 5, 12)
  local not_after, silence, amnesty = struct.unpack('>I6I4I4', head, 13)
  local now = now_ms()
  if now > not_after then
    return refuse('GDLATE', string.format('%.0f', now))
  end
  local had, others, dropped, own, newest, amnesty_until = redis.call('HGETALL', lane), {}, {}
  for at = 1, #had, 2 do
    local field, value = had[at], had[at + 1]
    if field == NEWEST then
      if #value == 12 then
        newest, amnesty_until = struct.unpack('>I6I6', value)
      end
    elseif #field ~= 4 or #value < 14 then
      -- Nobody's lease, whoever has put it there.
      dropped[#dropped + 1] = field
    elseif field == life then
      own = value
    elseif math.abs(now - struct.unpack('>I6', value)) > HOUR_MS then
      dropped[#dropped + 1] = field
    else
      others[#others + 1] = field
      others[#others + 1] = value
    end
  end
  if own and string.sub(own, 7, 14) ~= instance then
    return refuse('GDTAKEN', 'another node has this life; choose a new one')
  elseif not own and #others >= 2 * LIVES_MAX then
    return refuse('GDFULL', 'more than 1024 lives renewed within an hour')
  end
  -- Nobody could renew, or the clock went back: silence says nothing of anybody until all have had
  -- the time to be heard again.
  if not newest or now - newest > silence or newest - now > silence then
    amnesty_until = now + amnesty
  end
  own = struct.pack('>I6', now) .. instance .. info
  if #dropped > 0 then
    redis.call('HDEL', lane, unpack(dropped))
  end
  redis.call('HSET', lane, NEWEST, struct.pack('>I6I6', now, amnesty_until), life, own)
  return { 'r' .. struct.pack('>I6I6', now, amnesty_until), life, own, unpack(others) }
end

redis.register_function('gd1_vouch', vouch)
redis.register_function('gd1_fence', fence)
redis.register_function('gd1_renew', renew)
