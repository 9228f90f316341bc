{{ bugspulse.stream('crashes') }}
