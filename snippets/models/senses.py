"""Contexts that end in a word of several senses, and of one: written for this project, to compare hidden states.

Every context ends in "the" and the word, a single token: what tells the senses apart stands *before* it, where a causal
model can see it, and the token just before is always the same. Within a sense no content word repeats.
"""

from __future__ import annotations

Contexts = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""A word to contexts in its first sense (or topic) and in its second, as many of each."""

SENSES: Contexts = {
    "bank": (
        (
            "He paid the cheque into his account at the bank",
            "She asked about a mortgage with low interest at the bank",
            "Robbers emptied the vault and fled from the bank",
            "After the loan was refused they complained to the bank",
        ),
        (
            "The canoe drifted ashore and we climbed up the bank",
            "Otters had dug their holes along the bank",
            "The angler sat with his rod on the bank",
            "After heavy rain the stream burst over the bank",
        ),
    ),
    "spring": (
        (
            "After a long winter everybody welcomed the spring",
            "Farmers sow barley and oats in the spring",
            "Cherry trees blossom early in the spring",
            "Swallows return from Africa with the spring",
        ),
        (
            "The mattress sagged where rust had weakened the spring",
            "To wind the clock he tightened the spring",
            "The mechanic compressed the shock absorber and replaced the spring",
            "When the lid of the toy opened, out popped the spring",
        ),
    ),
    "bat": (
        (
            "Hanging upside down in the cave we saw the bat",
            "At dusk, catching moths on the wing, came the bat",
            "Vampires are said to take the shape of the bat",
            "Using echoes to find insects in darkness is a skill of the bat",
        ),
        (
            "The pitcher threw a curveball and he swung the bat",
            "The cricketer walked to the wicket and raised the bat",
            "She hit a home run and dropped the bat",
            "For baseball practice bring a glove, a helmet and the bat",
        ),
    ),
    "seal": (
        (
            "On the Arctic ice a polar bear hunted the seal",
            "At the zoo the keeper threw a herring to the seal",
            "Barking on the rocks and diving under the waves was the seal",
            "Its flippers and whiskers wet, out of the sea came the seal",
        ),
        (
            "The king signed the treaty and pressed his ring into wax for the seal",
            "To open the royal document he first had to break the seal",
            "The notary stamped the contract with the seal",
            "The ambassador checked that nobody had tampered with the envelope or the seal",
        ),
    ),
    "match": (
        (
            "Two goals before half time won the match",
            "The tennis player was injured and lost the match",
            "Fans filled the stadium to watch the match",
            "The referee blew his whistle to end the match",
        ),
        (
            "To light the candle she struck the match",
            "The campfire would not start because rain had soaked the match",
            "He shielded his cigarette from the wind and lit the match",
            "Gas was leaking, so nobody dared to use the match",
        ),
    ),
    "bark": (
        (
            "Beetles had eaten tunnels under the bark",
            "The old oak was covered in moss on the bark",
            "Deer in winter chew young trunks and strip the bark",
            "Cinnamon and cork both come from the bark",
        ),
        (
            "A stranger knocked and from the kennel came the bark",
            "The puppy growled and then we heard the bark",
            "Neighbours complained about the hound and the noise of the bark",
            "The sheepdog frightened the burglar with the bark",
        ),
    ),
    "crane": (
        (
            "On long legs, wading through the marsh, stood the crane",
            "With a slender neck and grey feathers, over the wetland flew the crane",
            "Its nest among the reeds was guarded by the crane",
            "The heron and the stork are often confused with the crane",
        ),
        (
            "Steel beams were lifted to the tenth floor by the crane",
            "At the harbour containers were unloaded by the crane",
            "The builder climbed into the cabin of the crane",
            "High winds forced the construction site to stop the crane",
        ),
    ),
    "palm": (
        (
            "The fortune teller read the lines on the palm",
            "He closed his fingers around the coin in the palm",
            "A splinter went through her glove into the palm",
            "She slapped the table with the flat of the palm",
        ),
        (
            "On the tropical beach they slept under the palm",
            "Coconuts dropped in the sand beside the palm",
            "In the oasis camels rested in the shade of the palm",
            "The hurricane tore the fronds from the palm",
        ),
    ),
    "trunk": (
        (
            "The elephant sprayed itself with the trunk",
            "A mammoth could pull up grass with the trunk",
            "The calf held its mother's tail with the trunk",
            "Above the tusks curled the trunk",
        ),
        (
            "He loaded the suitcases into the car and closed the trunk",
            "The spare tyre and the jack are in the trunk",
            "Police stopped the vehicle and searched the trunk",
            "She drove home from the supermarket with groceries in the trunk",
        ),
    ),
    "letter": (
        (
            "The child learned the alphabet, starting with the letter",
            "Both words of the crossword share the letter",
            "The printer's type had a scratch on the letter",
            "To spell the name correctly, double the letter",
        ),
        (
            "The postman climbed the steps with the letter",
            "She glued a stamp on the envelope and mailed the letter",
            "Far from home the soldier wept as he read the letter",
            "The lawyer replied to the complaint in the letter",
        ),
    ),
    "plant": (
        (
            "The workers went on strike and closed the plant",
            "Cars roll off the assembly line at the plant",
            "Smoke rose from the chimneys of the plant",
            "Engineers inspected the turbines and the reactor of the plant",
        ),
        (
            "She watered the soil around the roots of the plant",
            "Bees visit the flowers of the plant",
            "Put it in a pot near sunlight to help the plant",
            "Green leaves and a thin stem grew from the plant",
        ),
    ),
    "cell": (
        (
            "The guard locked the convict in the cell",
            "The burglar was arrested and spent the night in the cell",
            "Through the iron bars he looked out of the cell",
            "After sentencing, two inmates shared the cell",
        ),
        (
            "Under the microscope you can see the nucleus of the cell",
            "The virus enters through the membrane of the cell",
            "Proteins are made by ribosomes within the cell",
            "DNA is copied before the division of the cell",
        ),
    ),
    "organ": (
        (
            "In the cathedral a hymn was played on the organ",
            "Bach wrote fugues for the organ",
            "The choir sang while air rushed through the pipes of the organ",
            "With hands on keys and feet on pedals she practised the organ",
        ),
        (
            "The donor died and surgeons removed the organ",
            "Blood carries oxygen to the organ",
            "The liver is a gland, and alcohol damages the organ",
            "After the transplant his immune system rejected the organ",
        ),
    ),
    "mouse": (
        (
            "The cat crept through the barn and caught the mouse",
            "Cheese was gone from the trap but not the mouse",
            "An owl swooped over the field and carried off the mouse",
            "In its burrow, nursing five pups, lay the mouse",
        ),
        (
            "To select the file, double-click with the mouse",
            "The cursor froze so he unplugged the mouse",
            "Beside the keyboard and the screen lay the mouse",
            "Scroll down the page with the wheel of the mouse",
        ),
    ),
    "court": (
        (
            "The judge sentenced the thief in the court",
            "Witnesses swore an oath before the court",
            "The lawyer appealed against the verdict to the court",
            "A jury was chosen and silence fell over the court",
        ),
        (
            "She served an ace from the baseline of the court",
            "The basketball bounced off the rim onto the court",
            "Rackets in hand, both players walked onto the court",
            "The net was torn, so nobody could use the court",
        ),
    ),
    "pen": (
        (
            "Ink had leaked over his fingers from the pen",
            "She signed the contract and gave back the pen",
            "To take notes he borrowed the pen",
            "The poet filled a page before he put down the pen",
        ),
        (
            "The shepherd drove the flock into the pen",
            "Pigs squealed in the mud of the pen",
            "The farmer mended the fence around the pen",
            "Chickens had escaped through a gap in the pen",
        ),
    ),
    "current": (
        (
            "The swimmer was carried out to sea by the current",
            "Salmon leap upstream against the current",
            "The raft drifted past the rocks with the current",
            "Warm water crosses the Atlantic in the current",
        ),
        (
            "A fuse melts to interrupt the current",
            "Copper wire conducts the current",
            "The voltage divided by the resistance gives the current",
            "The battery was flat and could not supply the current",
        ),
    ),
    "star": (
        (
            "Through the telescope astronomers observed the star",
            "Planets orbit around the star",
            "Hydrogen burns to helium in the core of the star",
            "Sailors found north at night by the star",
        ),
        (
            "Photographers waited outside the hotel for the star",
            "The film made her rich and turned her into the star",
            "Fans screamed for an autograph from the star",
            "Hollywood paid ten million to the star",
        ),
    ),
}
"""Nouns of two senses."""

TOPICS: Contexts = {
    "water": (
        (
            "Boil the rice slowly in the water",
            "She filled the kettle and heated the water",
            "Add salt and pasta to the water",
            "The cook drained the potatoes and saved the water",
        ),
        (
            "The sailor fell overboard into the water",
            "Whales blow spray high above the water",
            "Beyond the harbour a submarine dived under the water",
            "Children jumped from the pier into the water",
        ),
    ),
    "child": (
        (
            "The nurse vaccinated the child",
            "With a high fever and a cough, in came the child",
            "The surgeon operated on the heart of the child",
            "Doctors prescribed antibiotics for the child",
        ),
        (
            "The teacher praised the homework of the child",
            "In class a pencil was given to the child",
            "Learning to read was easy for the child",
            "During the lesson arithmetic bored the child",
        ),
    ),
    "door": (
        (
            "The driver got out of the taxi and slammed the door",
            "She parked at the garage and locked the door",
            "A lorry scraped the paint off the door",
            "The mechanic replaced the hinge of the door",
        ),
        (
            "Two knights guarded the tower and the door",
            "The king's prisoners heard chains behind the door",
            "With a ram the army broke down the door",
            "The monk lit a torch and opened the door",
        ),
    ),
    "doctor": (
        (
            "On the battlefield a wounded soldier called for the doctor",
            "Under fire, bandages were brought to the doctor",
            "The general's leg was saved by the doctor",
            "In the trench bullets were removed by the doctor",
        ),
        (
            "The pregnant woman made an appointment with the doctor",
            "At the clinic patients waited for the doctor",
            "Her blood pressure was measured by the doctor",
            "For a prescription, telephone the doctor",
        ),
    ),
    "book": (
        (
            "Professors of history disagreed with the book",
            "In the archive scholars studied the book",
            "The emperor's wars are described in the book",
            "The thesis quoted three chapters of the book",
        ),
        (
            "For the recipe of the cake look in the book",
            "The chef wrote down sauces and soups in the book",
            "Flour and butter had stained the book",
            "How to roast a goose is explained in the book",
        ),
    ),
    "window": (
        (
            "Rain blew into the bedroom through the window",
            "The curtains were drawn across the window",
            "A burglar entered the kitchen by the window",
            "She watered the flowers beside the window",
        ),
        (
            "The train passed mountains outside the window",
            "The passenger in the carriage leaned against the window",
            "The conductor checked the ticket of the man at the window",
            "From her seat on the express she waved through the window",
        ),
    ),
    "horse": (
        (
            "The jockey whipped the horse",
            "Gamblers at the track had bet on the horse",
            "First past the finishing line came the horse",
            "The trophy was awarded to the owner of the horse",
        ),
        (
            "The plough was pulled by the horse",
            "After harvest hay was fed to the horse",
            "The blacksmith nailed iron shoes on the horse",
            "In the barn beside the cows slept the horse",
        ),
    ),
    "money": (
        (
            "The thieves hid the jewels and the money",
            "The kidnapper demanded a ransom and counted the money",
            "Detectives marked the notes and followed the money",
            "He was caught at the border with a bag of the money",
        ),
        (
            "The orphanage thanked the donors for the money",
            "Volunteers collected for refugees and sent the money",
            "After the earthquake the church gave the money",
            "To build a well in the village they raised the money",
        ),
    ),
}
"""Nouns of one sense in two topics: the control for what is context and not sense."""
